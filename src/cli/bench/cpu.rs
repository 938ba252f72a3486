//! CPU seconds of processes, from /proc.

/// User and system time so far; None when the process is gone.
pub fn of(pid: u32) -> Option<f64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may hold blanks and brackets; fields count from its last bracket.
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks: u64 = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
    Some(ticks as f64 / HERTZ)
}

/// Linux counts in hundredths for user space on every platform that we run on.
const HERTZ: f64 = 100.0;

/// All of them together; those that are gone count for nothing.
pub fn sum(pids: &[u32]) -> f64 {
    pids.iter().filter_map(|pid| of(*pid)).sum()
}

#[cfg(test)]
mod tests {
    #[test]
    fn our_own_time_only_grows() {
        let before = super::of(std::process::id()).unwrap();
        let mut x = 1u64;
        for i in 0..30_000_000u64 {
            x = std::hint::black_box(x.wrapping_mul(i | 1));
        }
        assert!(super::of(std::process::id()).unwrap() >= before, "{x}");
        assert!(super::of(1 << 23).is_none());
    }
}
