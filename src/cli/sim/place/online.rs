//! Placement for another program, line by line: it lists nodes and the mix of requests,
//! then asks for one place after the other. A line that can't be read ends the session
//! with its number and field. It decides nothing.
//!
//! ```text
//! → NODES n, then n lines: id cpu_milli mem_mib gpus model [rack=NAME] [zone=NAME] [region=NAME]
//! → HISTORY k, then k lines: count cpu_milli mem_mib num_gpu milli models
//! → READY                                                 ← READY
//! → POD seq cpu_milli mem_mib num_gpu milli models        ← id dev,dev  or  NONE
//! → GANG seq replicas cpu_milli mem_mib num_gpu milli models [required=LEVEL] [preferred=LEVEL]
//!                                                         ← id dev,dev id dev,dev …  or  NONE
//! → OK | FAILED      (FAILED: the place was not taken)
//! → END
//! ```

use super::super::lines::{Fault, Line, Lines};
use super::ask::{BadLine, Fields, short};
use nf_core::id::DeviceType;
use nf_core::job::MAX_REPLICAS;
use nf_core::placement::trial::{Trial, TrialNode};
use nf_core::placement::{Pick, Policy};
use nf_core::resources::{MAX_BYTES, MAX_DEVICES};
use std::io::{self, BufRead, Write};

/// Most nodes in one session.
const NODES: u64 = 1 << 17;
/// Most lines of history.
const HISTORY: u64 = 1 << 20;

/// Why a session ended early.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Line(#[from] BadLine),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Speaks until END or the end of the input.
///
/// # Errors
/// A line that can't be read, or a stream that fails.
pub fn run(input: impl BufRead, output: impl Write, policy: Policy) -> Result<(), Error> {
    let mut lines = Lines::new(input);
    let mut session = Session { ids: Vec::new(), trial: None, ready: false, pending: false, output };
    while let Some(line) = next(&mut lines)? {
        let mut fields = Fields::new(line.number, line.text);
        let Ok(word) = fields.text("word") else { continue };
        match word {
            "NODES" => {
                let count = session.before_ready(&mut fields, "NODES", NODES)?;
                fields.end()?;
                session.nodes(&mut lines, count, policy)?;
            }
            "HISTORY" => {
                let count = session.before_ready(&mut fields, "HISTORY", HISTORY)?;
                fields.end()?;
                session.history(&mut lines, count)?;
            }
            "READY" => session.ready(fields)?,
            "POD" => session.pod(fields)?,
            "GANG" => session.gang(fields)?,
            "OK" => session.pending = false,
            "FAILED" => session.failed(),
            "END" => return Ok(()),
            other => {
                let what = format!("NODES, HISTORY, READY, POD, GANG, OK, FAILED or END, not \"{}\"", short(other));
                return Err(fields.bad("word", what).into());
            }
        }
    }
    Ok(())
}

/// The next line that has something in it, or which one can't be read.
fn next<R: BufRead>(lines: &mut Lines<R>) -> Result<Option<Line<'_>>, Error> {
    loop {
        let line = lines.number() + 1;
        let more = lines.advance().map_err(|fault| match fault {
            Fault::Io(e) => Error::Io(e),
            fault => BadLine { line, field: "line", what: fault.to_string() }.into(),
        })?;
        if !more {
            return Ok(None);
        }
        if !lines.line().text.trim().is_empty() {
            return Ok(Some(lines.line()));
        }
    }
}

/// A line of a list whose length was said.
fn of_list<'a, R: BufRead>(lines: &'a mut Lines<R>, field: &'static str) -> Result<Line<'a>, Error> {
    let missing = BadLine { line: lines.number() + 1, field, what: "the list ends early".to_owned() };
    next(lines)?.ok_or_else(|| missing.into())
}

struct Session<W> {
    ids: Vec<String>,
    trial: Option<Trial>,
    ready: bool,
    /// The last answer named a place, and nobody has said what became of it.
    pending: bool,
    output: W,
}

impl<W: Write> Session<W> {
    fn before_ready(&self, fields: &mut Fields<'_>, word: &'static str, most: u64) -> Result<u64, BadLine> {
        if self.ready || (word == "NODES") == self.trial.is_some() {
            return Err(
                fields.bad("word", format!("{word} is out of order: NODES, then HISTORY, then READY, each once"))
            );
        }
        fields.number(word, most)
    }

    fn nodes<R: BufRead>(&mut self, lines: &mut Lines<R>, count: u64, policy: Policy) -> Result<(), Error> {
        let mut nodes = Vec::new();
        for _ in 0..count {
            let line = of_list(lines, "id")?;
            let mut fields = Fields::new(line.number, line.text);
            let id = fields.text("id")?.to_owned();
            let cpu_milli = fields.number("cpu_milli", MAX_BYTES)?;
            let memory = fields.number("mem_mib", MAX_BYTES >> 20)? << 20;
            let gpus = fields.number("gpus", u64::from(MAX_DEVICES))? as u16;
            let device_type = match fields.text("model")? {
                "-" => None,
                name => Some(DeviceType::new(name).map_err(|e| fields.bad("model", e.to_string()))?),
            };
            let place = fields.place()?;
            fields.end()?;
            self.ids.push(id);
            nodes.push(TrialNode { cpu_milli, memory, gpus, device_type, place });
        }
        self.trial = Some(Trial::new(&nodes, policy));
        Ok(())
    }

    fn history<R: BufRead>(&mut self, lines: &mut Lines<R>, count: u64) -> Result<(), Error> {
        let Some(trial) = &mut self.trial else { return Ok(()) };
        for _ in 0..count {
            let line = of_list(lines, "count")?;
            let mut fields = Fields::new(line.number, line.text);
            let times = fields.number("count", u64::from(u32::MAX))?;
            let ask = fields.ask()?;
            fields.end()?;
            if times > 0 {
                trial.expect(&ask, times);
            }
        }
        Ok(())
    }

    fn ready(&mut self, fields: Fields<'_>) -> Result<(), Error> {
        let Some(trial) = self.trial.as_mut().filter(|_| !self.ready) else {
            return Err(fields.bad("word", "READY comes once, after NODES").into());
        };
        fields.end()?;
        trial.refresh();
        self.ready = true;
        writeln!(self.output, "READY")?;
        Ok(self.output.flush()?)
    }

    fn pod(&mut self, mut fields: Fields<'_>) -> Result<(), Error> {
        let Some(trial) = self.trial.as_mut().filter(|_| self.ready) else {
            return Err(fields.bad("word", "POD comes after READY").into());
        };
        fields.text("seq")?;
        let ask = fields.ask()?;
        fields.end()?;
        let picks = Vec::from_iter(trial.place(&ask));
        self.answer(&picks)
    }

    fn gang(&mut self, mut fields: Fields<'_>) -> Result<(), Error> {
        let Some(trial) = self.trial.as_mut().filter(|_| self.ready) else {
            return Err(fields.bad("word", "GANG comes after READY").into());
        };
        fields.text("seq")?;
        let replicas = fields.number("replicas", u64::from(MAX_REPLICAS))? as u16;
        let ask = fields.ask()?;
        let topology = fields.topology()?;
        fields.end()?;
        let picks = trial.place_gang(&ask, replicas, topology);
        self.answer(&picks)
    }

    /// A node and its devices for each place, on one line.
    fn answer(&mut self, picks: &[Pick]) -> Result<(), Error> {
        self.pending = !picks.is_empty();
        let place = |pick: &Pick| {
            let devices: Vec<String> = pick.alloc.shares.iter().map(|share| share.device.to_string()).collect();
            let devices = if devices.is_empty() { "-".to_owned() } else { devices.join(",") };
            format!("{} {devices}", self.ids[pick.alloc.node.0 as usize])
        };
        let places: Vec<String> = picks.iter().map(place).collect();
        let places = if places.is_empty() { "NONE".to_owned() } else { places.join(" ") };
        writeln!(self.output, "{places}")?;
        Ok(self.output.flush()?)
    }

    fn failed(&mut self) {
        if let (true, Some(trial)) = (std::mem::take(&mut self.pending), &mut self.trial) {
            trial.undo();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODES: &str = "NODES 2\na 8000 16384 2 T4\nb 8000 16384 1 -\n";

    fn speak(text: &str) -> Result<String, String> {
        let mut out = Vec::new();
        run(text.as_bytes(), &mut out, Policy::Fragmentation).map_err(|e| e.to_string())?;
        Ok(String::from_utf8(out).unwrap())
    }

    #[test]
    fn a_session_places_until_nothing_fits() {
        let text = format!(
            "{NODES}HISTORY 1\n5 1000 10 1 500 -\nREADY\nPOD 0 1000 10 2 1000 T4|V100\nOK\nPOD 1 1000 10 1 600 -\nOK\nPOD 2 1 1 1 500 -\nFAILED\nPOD 3 1 1 0 0 -\nOK\nEND\nrubbish\n"
        );
        let out = speak(&text).unwrap();
        let lines: Vec<&str> = out.lines().collect();
        assert_eq!(lines[..4], ["READY", "a 0,1", "b 0", "NONE"]);
        assert!(lines[4].ends_with(" -"), "{out}");
    }

    #[test]
    fn a_gang_is_in_one_rack_or_nowhere() {
        let nodes =
            "NODES 4\na 8000 16384 4 - rack=r1\nb 8000 16384 2 - rack=r1\nc 8000 16384 4 - rack=r2 zone=z\nd 1 1 0 -\n";
        let gang = |replicas: u16, wish: &str| format!("GANG 0 {replicas} 0 0 2 1000 - {wish}\nFAILED\n");
        let text = format!(
            "{nodes}READY\n{}{}{}{}END\n",
            gang(2, "required=rack"),
            gang(3, "required=rack"),
            gang(5, "required=rack"),
            gang(5, "preferred=rack")
        );
        let out = speak(&text).unwrap();
        let lines: Vec<&str> = out.lines().collect();
        assert_eq!(lines, ["READY", "c 0,1 c 2,3", "b 0,1 a 0,1 a 2,3", "NONE", "b 0,1 a 0,1 a 2,3 c 0,1 c 2,3"]);
        let wrong = |wish: &str| speak(&format!("{nodes}READY\n{}", gang(2, wish))).unwrap_err();
        assert_eq!(wrong("required=row"), "line 7: required: rack, zone or region, not \"row\"");
        assert!(wrong("wanted=rack").contains("one field too many"), "{}", wrong("wanted=rack"));
        let bad = speak("NODES 1\na 1 1 1 - rack=/\n").unwrap_err();
        assert!(bad.starts_with("line 2: rack:"), "{bad}");
    }

    #[test]
    fn a_place_that_was_not_taken_is_free_again() {
        let text = format!(
            "{NODES}READY\nPOD 0 0 0 2 1000 -\nFAILED\nPOD 1 0 0 2 1000 T4\nOK\nPOD 2 0 0 2 1000 -\nFAILED\nEND\n"
        );
        assert_eq!(speak(&text).unwrap(), "READY\na 0,1\na 0,1\nNONE\n");
    }

    #[test]
    fn lines_of_other_programs_are_read() {
        let plain = format!("{NODES}HISTORY 1\n5 1000 10 1 500 -\nREADY\nPOD 0 1000 10 2 1000 T4|V100\nOK\nEND");
        let decimals = "NODES 2.0\na 8e3 16384.0 2.0 T4\nb 8000 16384 1 -\nHISTORY 1\n5.0 1000.0 10 1 5e2 -\nREADY\n\
                        POD 0 1000.0 10.0 2.0 1000.0 T4|V100\nOK\nEND\n";
        let blank = plain.replace('\n', "  \r\n \t\r\n\r\n");
        for text in [plain, decimals.to_owned(), format!("\u{feff}{blank}")] {
            assert_eq!(speak(&text).unwrap_or_else(|e| panic!("{text}: {e}")), "READY\na 0,1\n", "{text}");
        }
    }

    #[test]
    fn a_bad_line_is_named_with_its_field() {
        for (text, expected) in [
            ("NODES x\n", "line 1: NODES: a number"),
            ("NODES 2\na 1 1 1 T4\n", "line 3: id: the list ends early"),
            ("NODES 1\na 1 1 -1 T4\n", "line 2: gpus: a number"),
            ("NODES 1\n\na 1 1 1.5 T4\n", "line 3: gpus: a number"),
            ("NODES 1\na 1e300 1 1 T4\n", "line 2: cpu_milli: a number"),
            ("NODES 1\na nan 1 1 T4\n", "line 2: cpu_milli: a number"),
            ("NODES 1\na 1 1 1 T4 extra\n", "line 2: end of line:"),
            ("READY\n", "line 1: word: READY comes once, after NODES"),
            ("NODES 0\nREADY\nPOD 1 1 1 2 500 -\n", "line 3: milli: 500 thousandths of each of 2"),
            ("NODES 0\nREADY\nPOD 1 1 1\n", "line 3: num_gpu: missing"),
            ("NODES 0\nREADY\nPOD 1 1 1 1 1001 -\n", "line 3: milli: a number from 0 to 1000"),
            ("NODES 0\nREADY\nPOD 1 1 1 1 1000 ../x\n", "line 3: models:"),
            ("NODES 0\nNODES 0\n", "line 2: word: NODES is out of order"),
            ("\nHELLO\n", "line 2: word: NODES, HISTORY"),
        ] {
            let error = speak(text).unwrap_err();
            assert!(error.starts_with(expected), "{text:?}: {error}");
        }
        let long = format!("POD {}\n", "9".repeat(1 << 17));
        assert!(speak(&long).unwrap_err().contains("longer than"));
    }
}
