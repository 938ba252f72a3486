//! Placement for another program, line by line: it lists nodes and the mix of requests,
//! then asks for one place after the other. A line that can't be read ends the session
//! with its number and field. An ask for more than any node has fits nowhere, and of a node
//! counts as much as the product counts; both are said beside the session. It decides nothing.
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
use super::ask::{BadLine, Beyond, Fields, short};
use nf_core::id::DeviceType;
use nf_core::job::MAX_REPLICAS;
use nf_core::placement::trial::{Trial, TrialNode, beyond_count};
use nf_core::placement::{Pick, Policy};
use nf_core::resources::{MAX_BYTES, MAX_DEVICES};
use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::io::{self, BufRead, Write};

/// Most nodes in one session.
const NODES: u64 = 1 << 17;
/// Most lines of history.
const HISTORY: u64 = 1 << 20;
/// Lines of which something is said beside the session; then it is enough.
const NOTES: u32 = 20;

/// Why a session ended early.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Line(#[from] BadLine),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Speaks until END or the end of the input. `notes` is told what was read and could not be taken as it stands.
///
/// # Errors
/// A line that can't be read, or a stream that fails.
pub fn run(input: impl BufRead, output: impl Write, notes: impl FnMut(&str), policy: Policy) -> Result<(), Error> {
    let mut lines = Lines::new(input);
    let notes = Notes { told: 0, notes };
    let mut session = Session { ids: Vec::new(), trial: None, ready: false, pending: false, output, notes };
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

/// Says what was read and could not be taken as it stands, of the first such lines.
struct Notes<F> {
    told: u32,
    notes: F,
}

impl<F: FnMut(&str)> Notes<F> {
    fn tell(&mut self, Beyond(line): &Beyond, then: &str) {
        self.told = self.told.saturating_add(1);
        match self.told.cmp(&NOTES) {
            Ordering::Less => (self.notes)(&format!("{line}; {then}")),
            Ordering::Equal => (self.notes)(&format!("{line}; {then}; of further such lines nothing is said")),
            Ordering::Greater => {}
        }
    }

    /// The number, or as much of it as there can be.
    fn most(&mut self, number: Result<u64, Beyond>, most: u64) -> u64 {
        number.unwrap_or_else(|beyond| {
            self.tell(&beyond, &format!("{most} of it count"));
            most
        })
    }
}

struct Session<W, F> {
    ids: Vec<String>,
    trial: Option<Trial>,
    ready: bool,
    /// The last answer named a place, and nobody has said what became of it.
    pending: bool,
    output: W,
    notes: Notes<F>,
}

impl<W: Write, F: FnMut(&str)> Session<W, F> {
    fn before_ready(&self, fields: &mut Fields<'_>, word: &'static str, most: u64) -> Result<u64, BadLine> {
        if self.ready || (word == "NODES") == self.trial.is_some() {
            return Err(
                fields.bad("word", format!("{word} is out of order: NODES, then HISTORY, then READY, each once"))
            );
        }
        fields.number(word, most)
    }

    fn nodes<R: BufRead>(&mut self, lines: &mut Lines<R>, count: u64, policy: Policy) -> Result<(), Error> {
        let (mut nodes, mut ids) = (Vec::new(), BTreeSet::new());
        for _ in 0..count {
            let line = of_list(lines, "id")?;
            let mut fields = Fields::new(line.number, line.text);
            let id = fields.text("id")?.to_owned();
            if !ids.insert(id.clone()) {
                let what = format!("\"{}\" is listed twice, and answers name nodes by it", short(&id));
                return Err(fields.bad("id", what).into());
            }
            let mut most = |field, most| Ok::<u64, BadLine>(self.notes.most(fields.count(field, most)?, most));
            let cpu_milli = most("cpu_milli", MAX_BYTES)?;
            let memory = most("mem_mib", MAX_BYTES >> 20)? << 20;
            let gpus = most("gpus", u64::from(MAX_DEVICES))? as u16;
            let device_type = match fields.text("model")? {
                "-" => None,
                name => Some(DeviceType::new(name).map_err(|e| fields.bad("model", e.to_string()))?),
            };
            let place = fields.place()?;
            fields.end()?;
            self.ids.push(id);
            nodes.push(TrialNode { cpu_milli, memory, gpus, device_type, place });
        }
        if let Some(at) = beyond_count(&nodes) {
            let (line, what) =
                (lines.number(), format!("with {} the nodes have more than can be counted", self.ids[at]));
            return Err(BadLine { line, field: "cpu_milli or mem_mib", what }.into());
        }
        self.trial = Some(Trial::new(&nodes, policy));
        Ok(())
    }

    fn history<R: BufRead>(&mut self, lines: &mut Lines<R>, count: u64) -> Result<(), Error> {
        let Some(trial) = &mut self.trial else { return Ok(()) };
        for _ in 0..count {
            let line = of_list(lines, "count")?;
            let mut fields = Fields::new(line.number, line.text);
            let times = self.notes.most(fields.count("count", u64::from(u32::MAX))?, u64::from(u32::MAX));
            let ask = fields.ask()?;
            fields.end()?;
            match ask {
                Ok(ask) if times > 0 => trial.expect(&ask, times),
                Ok(_) => {}
                Err(beyond) => self.notes.tell(&beyond, "it is left out of the mix"),
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
        if !self.ready {
            return Err(fields.bad("word", "POD comes after READY").into());
        }
        fields.text("seq")?;
        let ask = fields.ask()?;
        fields.end()?;
        self.place(ask, |trial, ask| Vec::from_iter(trial.place(ask)))
    }

    fn gang(&mut self, mut fields: Fields<'_>) -> Result<(), Error> {
        if !self.ready {
            return Err(fields.bad("word", "GANG comes after READY").into());
        }
        fields.text("seq")?;
        let replicas = fields.count("replicas", u64::from(MAX_REPLICAS))?;
        let ask = fields.ask()?;
        let topology = fields.topology()?;
        fields.end()?;
        let all = replicas.and_then(|replicas| Ok((replicas as u16, ask?)));
        self.place(all, |trial, (replicas, ask)| trial.place_gang(ask, *replicas, topology))
    }

    /// Answers with the places that are found; what is beyond every node has none.
    fn place<A>(
        &mut self,
        ask: Result<A, Beyond>,
        find: impl FnOnce(&mut Trial, &A) -> Vec<Pick>,
    ) -> Result<(), Error> {
        let picks = match (&mut self.trial, &ask) {
            (Some(trial), Ok(ask)) => find(trial, ask),
            (_, Err(beyond)) => {
                self.notes.tell(beyond, "it fits nowhere");
                Vec::new()
            }
            (None, _) => Vec::new(),
        };
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
        run(text.as_bytes(), &mut out, |_| {}, Policy::Fragmentation).map_err(|e| e.to_string())?;
        Ok(String::from_utf8(out).unwrap())
    }

    /// What is said beside the session, too.
    fn noted(text: &str) -> (Vec<String>, Vec<String>) {
        let (mut out, mut notes) = (Vec::new(), Vec::new());
        run(text.as_bytes(), &mut out, |note| notes.push(note.to_owned()), Policy::Fragmentation).unwrap();
        (String::from_utf8(out).unwrap().lines().map(str::to_owned).collect(), notes)
    }

    #[test]
    fn an_ask_for_more_than_any_node_has_fits_nowhere_and_the_session_goes_on() {
        let beyond = [
            "1e300 1 1 1000 -",
            "1 99999999999999999999999 1 1000 -",
            "1 1 1025 1000 -",
            "1 1 1 1001 -",
            "1 1 2 500 -",
            "1 1 1 0 -",
        ];
        let history = beyond.map(|ask| format!("3 {ask}\n")).concat();
        let pods = beyond.map(|ask| format!("POD 0 {ask}\nFAILED\n")).concat();
        let text = format!(
            "{NODES}HISTORY 7\n{history}99999999999 1 1 1 1000 -\nREADY\n{pods}GANG 0 1025 1 1 1 1000 -\nOK\n\
             GANG 0 2 1 1 1025 1000 -\nFAILED\nPOD 1 1000 10 2 1000 -\nEND\n"
        );
        let (out, notes) = noted(&text);
        assert_eq!(out[0], "READY");
        assert_eq!(out[1..9], ["NONE"; 8]);
        assert_eq!(out[9..], ["a 0,1"]);
        assert_eq!(notes.len(), 15);
        assert_eq!(
            notes[6],
            "line 11: count: a number from 0 to 4294967295, not \"99999999999\"; 4294967295 of it count"
        );
        assert!(
            notes[0].starts_with("line 5: cpu_milli:") && notes[0].ends_with("it is left out of the mix"),
            "{notes:?}"
        );
        assert!(notes[7].starts_with("line 13: cpu_milli:") && notes[7].ends_with("it fits nowhere"), "{notes:?}");
        let many = format!("{NODES}READY\n{}END\n", "POD 0 1 1 1025 1000 -\n".repeat(100));
        assert_eq!(noted(&many).1.len(), NOTES as usize);
    }

    #[test]
    fn of_a_node_counts_what_the_product_counts_and_all_together_what_a_number_holds() {
        let (out, notes) = noted("NODES 1\na 1e300 1e300 1025 T4\nREADY\nPOD 0 1 1 1024 1000 T4\nEND\n");
        assert!(out[1].starts_with("a 0,1,2,") && out[1].ends_with(",1023"), "{out:?}");
        assert_eq!(notes.len(), 3, "{notes:?}");
        let large: String = (0..3000).map(|no| format!("n{no} 1e300 1 1 -\n")).collect();
        let error = speak(&format!("NODES 3000\n{large}READY\n")).unwrap_err();
        assert!(error.contains("with n2047 the nodes have more than can be counted"), "{error}");
        let twice = speak("NODES 2\na 1 1 1 -\na 1 1 1 -\n").unwrap_err();
        assert_eq!(twice, "line 3: id: \"a\" is listed twice, and answers name nodes by it");
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
            ("NODES 1\na inf 1 1 T4\n", "line 2: cpu_milli: a number"),
            ("NODES 1\na nan 1 1 T4\n", "line 2: cpu_milli: a number"),
            ("NODES 1\na 1 1 1 T4 extra\n", "line 2: end of line:"),
            ("READY\n", "line 1: word: READY comes once, after NODES"),
            ("NODES 0\nREADY\nPOD 1 1 -1 2 1000 -\n", "line 3: mem_mib: a number"),
            ("NODES 0\nREADY\nPOD 1 1 1\n", "line 3: num_gpu: missing"),
            ("NODES 0\nREADY\nPOD 1 1 1 1 x -\n", "line 3: milli: a number from 0 to 1000"),
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
