//! Fields of a line as numbers, requests and nodes, with errors that name the line and
//! the field. It does not know what the lines are for.

use nf_core::id::{DeviceType, Label};
use nf_core::job::device_types;
use nf_core::placement::trial::Whereabouts;
use nf_core::resources::{Gpus, MAX_BYTES, MAX_DEVICES, Resources, WHOLE};
use nf_core::topology::{Level, Topology};

/// What is wrong with a line.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {field}: {what}")]
pub struct BadLine {
    pub line: usize,
    pub field: &'static str,
    pub what: String,
}

/// The fields of one line, taken from the left.
pub struct Fields<'a> {
    line: usize,
    rest: std::str::SplitAsciiWhitespace<'a>,
}

impl<'a> Fields<'a> {
    pub fn new(line: usize, text: &'a str) -> Self {
        Self { line, rest: text.split_ascii_whitespace() }
    }

    pub fn bad(&self, field: &'static str, what: impl Into<String>) -> BadLine {
        BadLine { line: self.line, field, what: what.into() }
    }

    pub fn text(&mut self, field: &'static str) -> Result<&'a str, BadLine> {
        self.rest.next().ok_or_else(|| self.bad(field, "missing"))
    }

    pub fn number(&mut self, field: &'static str, most: u64) -> Result<u64, BadLine> {
        let number = self.count(field, most)?;
        number.map_err(|Beyond(line)| line)
    }

    /// A number that may be more than there can be.
    pub fn count(&mut self, field: &'static str, most: u64) -> Result<Result<u64, Beyond>, BadLine> {
        let text = self.text(field)?;
        let wrong = || self.bad(field, format!("a number from 0 to {most}, not \"{}\"", short(text)));
        match text.parse::<u64>().ok().or_else(|| whole(text)) {
            Some(number) if number <= most => Ok(Ok(number)),
            Some(_) => Ok(Err(Beyond(wrong()))),
            None => Err(wrong()),
        }
    }

    /// The value of a field `name=value`, if that is next.
    fn named(&mut self, name: &'static str) -> Option<&'a str> {
        let value = self.rest.clone().next()?.strip_prefix(name)?.strip_prefix('=')?;
        self.rest.next();
        Some(value)
    }

    /// `[rack=NAME] [zone=NAME] [region=NAME]`
    pub fn place(&mut self) -> Result<Whereabouts, BadLine> {
        let mut label = |name| {
            let text = self.named(name);
            text.map(|text| Label::new(text).map_err(|e| self.bad(name, e.to_string()))).transpose()
        };
        Ok(Whereabouts { rack: label("rack")?, zone: label("zone")?, region: label("region")? })
    }

    /// `[required=LEVEL] [preferred=LEVEL]`
    pub fn topology(&mut self) -> Result<Topology, BadLine> {
        let mut level = |name| {
            let text = self.named(name);
            let what = |text: &str| format!("rack, zone or region, not \"{}\"", short(text));
            text.map(|text| Level::named(text).ok_or_else(|| self.bad(name, what(text)))).transpose()
        };
        Ok(Topology { required: level("required")?, preferred: level("preferred")? })
    }

    /// Nothing may follow.
    pub fn end(mut self) -> Result<(), BadLine> {
        match self.rest.next() {
            None => Ok(()),
            Some(more) => Err(self.bad("end of line", format!("\"{}\" is one field too many", short(more)))),
        }
    }

    /// `cpu_milli mem_mib num_gpu milli models`
    pub fn ask(&mut self) -> Result<Result<Resources, Beyond>, BadLine> {
        let cpu_milli = self.count("cpu_milli", MAX_BYTES)?;
        let memory = self.count("mem_mib", MAX_BYTES >> 20)?;
        let count = self.count("num_gpu", u64::from(MAX_DEVICES))?;
        let milli = self.count("milli", u64::from(WHOLE))?;
        let models = self.text("models")?;
        let named = models.split('|').filter(|name| !matches!(*name, "" | "-"));
        let types: Result<Vec<DeviceType>, _> = named.map(DeviceType::new).collect();
        let types = types.map_err(|e| self.bad("models", e.to_string()))?;
        let ask = || {
            let gpu = gpus(count?, milli?).map_err(|what| Beyond(self.bad("milli", what)))?;
            let (cpu_milli, memory) = (cpu_milli?, memory? << 20);
            Ok(Resources { gpu, cpu_milli, memory, device_types: device_types(types), ..Resources::default() })
        };
        Ok(ask())
    }
}

/// What can be read and is more than any node has: nothing is wrong with the line, and nothing fits.
#[derive(Debug, PartialEq, Eq)]
pub struct Beyond(pub BadLine);

/// A whole number as programs write it that know only floats: 6.0, 8e3. What is too large to be counted is the largest.
fn whole(text: &str) -> Option<u64> {
    let number = text.parse::<f64>().ok().filter(|n| n.is_finite() && n.fract() == 0.0 && *n >= 0.0)?;
    Some(number as u64)
}

/// Devices from their number and thousandths of each.
pub fn gpus(count: u64, milli: u64) -> Result<Gpus, String> {
    let whole = u64::from(WHOLE);
    match (count, milli) {
        (0, _) => Ok(Gpus::None),
        (_, 0) => Err("a request for GPUs asks for 1 to 1000 thousandths of each".into()),
        (1, milli) if milli < whole => Ok(Gpus::Milli(milli as u16)),
        (count, milli) if milli == whole => Ok(Gpus::Whole(count as u16)),
        (count, milli) => Err(format!("{milli} thousandths of each of {count} devices; a part is of one device only")),
    }
}

/// The beginning of a text that may be anything.
pub fn short(text: &str) -> String {
    text.chars().take(40).collect::<String>().escape_debug().to_string()
}
