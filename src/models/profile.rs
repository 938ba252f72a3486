//! Runtime profiles: how well-known model servers are started, asked and drained, as data
//! (profiles.toml beside this file). Publishing copies one into the manifest, so that a
//! profile which changes with a release changes no version that exists.

use super::Process;
use std::collections::BTreeMap;
use std::sync::LazyLock;

static PROFILES: LazyLock<BTreeMap<String, Process>> = LazyLock::new(|| {
    toml::from_str(include_str!("profiles.toml")).expect("part of the build, and a test reads every one of them")
});

/// The profile of that name.
pub fn profile(name: &str) -> Option<&'static Process> {
    PROFILES.get(name)
}

/// All names, sorted.
pub fn profiles() -> impl Iterator<Item = &'static str> {
    PROFILES.keys().map(String::as_str)
}

#[cfg(test)]
mod tests {
    use super::super::manifest::Slots;
    use super::super::{FileName, Launch, Manifest};
    use super::*;
    use nf_core::sharing::{Kept, Part};
    use serde_json::json;
    use std::path::Path;

    /// A manifest with that profile and the files that it names.
    fn manifest(process: &Process) -> Manifest {
        let named = process.argv.iter().filter_map(|word| word.strip_prefix("{file:")?.strip_suffix('}'));
        let names: Vec<&str> = ["weights.gguf"].into_iter().chain(named).collect();
        let file = |name: &&str| json!({ "path": FileName::new(name).unwrap(), "size": 1, "sha256": "0".repeat(64) });
        let files: Vec<_> = names.iter().map(file).collect();
        let runtime = serde_json::to_value(Launch::Process(process.clone())).unwrap();
        let value = json!({ "model_id": "m", "version": "v1", "files": files, "format": "test", "runtime": runtime });
        Manifest::parse("a profile", &serde_json::to_vec(&value).unwrap()).unwrap()
    }

    #[test]
    fn every_profile_is_a_sound_runtime() {
        let known: Vec<&str> = profiles().collect();
        assert_eq!(known, ["llama-cpp", "ollama", "onnx-example", "sglang", "tensorrt-llm", "tgi", "triton", "vllm"]);
        for name in known {
            let process = profile(name).unwrap();
            let manifest = manifest(process);
            let slots =
                Slots { host: "127.0.0.1", port: Some(4711), dir: Path::new("/m"), python: "python3", part: None };
            let argv = manifest.argv(process, &slots).unwrap().join(" ");
            assert!(argv.contains("4711") && argv.contains("127.0.0.1") && argv.contains("/m"), "{name}: {argv}");
            assert!(process.live.is_some(), "{name}");
            // Only who is told a limit and keeps to it counts as enforcing it.
            assert_eq!(process.limits_gpu, ["vllm", "tgi"].contains(&name), "{name}");
            assert_eq!(process.limits_gpu, argv.contains(" 0.9"), "{name}: {argv}");
            let half = Part { kept: Kept::Runtime, milli: 500, memory: 40 << 30, of: 80 << 30 };
            let argv = manifest.argv(process, &Slots { part: Some(half), ..slots }).unwrap().join(" ");
            assert_eq!(process.limits_gpu, argv.contains(" 0.5"), "{name}: {argv}");
            assert!(process.drain.as_ref().is_some_and(|drain| drain.timeout_s >= 30), "{name}");
        }
        assert!(profile("no-such").is_none());
        // It would listen for them at a port of its own, 8002, which the node's second replica finds taken.
        let triton = profile("triton").unwrap();
        assert!(triton.argv.contains(&"--allow-metrics=false".to_owned()) && triton.metrics.is_none());
    }

    /// CONVENTIONS: the signals of language models, by runtime.
    #[test]
    fn language_models_tell_how_full_their_cache_is_and_when_the_first_token_comes() {
        for (name, kv_caches, first_token) in [
            (
                "vllm",
                &["vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"][..],
                "vllm:time_to_first_token_seconds",
            ),
            ("sglang", &["sglang:token_usage"], "sglang:time_to_first_token_seconds"),
            ("tensorrt-llm", &["trtllm_kv_cache_utilization"], "trtllm_time_to_first_token_seconds"),
        ] {
            let metrics = profile(name).and_then(|profile| profile.metrics.as_ref()).unwrap();
            assert_eq!(metrics.kv_caches().collect::<Vec<_>>(), kv_caches, "{name}");
            assert_eq!(metrics.first_token.as_deref(), Some(first_token), "{name}");
        }
    }
}
