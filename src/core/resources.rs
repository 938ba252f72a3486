//! What one replica asks for, in integers with units. Parsing of "4GB" is here,
//! too, because its rules (GB = 10^9, GiB = 2^30, a plain number is bytes) are
//! part of the contract. It does not know what a node has.

use crate::id::DeviceType;
use serde::{Deserialize, Serialize};

/// A whole device, in the unit in which devices are shared out.
pub const WHOLE: u32 = 1000;

/// The most devices one replica can ask for. A bound, so that sums cannot overflow.
pub const MAX_DEVICES: u16 = 1024;

/// How many devices of a kind one replica asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Gpus {
    #[default]
    None,
    /// Whole devices, held alone.
    Whole(u16),
    /// Part of one device, in thousandths (1..=999).
    Milli(u16),
}

impl Gpus {
    /// Thousandths of a device in all.
    pub fn milli(self) -> u64 {
        match self {
            Gpus::None => 0,
            Gpus::Whole(n) => u64::from(n) * u64::from(WHOLE),
            Gpus::Milli(m) => u64::from(m),
        }
    }

    /// Who names a kind of slice, and no number, wants one.
    #[must_use]
    pub fn or_slice(self, profile: Option<&DeviceType>) -> Self {
        if self == Gpus::None && profile.is_some() { Gpus::Whole(1) } else { self }
    }

    /// From a count in thousandths: whole devices, or part of one.
    ///
    /// # Errors
    /// A text when it is neither, e.g. 1.5 devices.
    pub fn from_milli(milli: u64) -> Result<Self, String> {
        match milli {
            0 => Ok(Gpus::None),
            1..1000 => Ok(Gpus::Milli(milli as u16)),
            m if m % 1000 == 0 && m / 1000 <= u64::from(MAX_DEVICES) => Ok(Gpus::Whole((m / 1000) as u16)),
            m if m % 1000 == 0 => Err(format!("at most {MAX_DEVICES} devices per replica, not {}", m / 1000)),
            m => Err(format!("whole devices or a part of one, not {}.{:03}", m / 1000, m % 1000)),
        }
    }
}

/// What one replica asks for. Zero means "does not matter".
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Resources {
    pub gpu: Gpus,
    /// Device memory in bytes that each device must have; for a fraction, its part of the device.
    pub gpu_memory: u64,
    /// Any of these types; empty means any type. Sorted, without duplicates.
    pub device_types: Vec<DeviceType>,
    /// A MIG profile such as `1g.10gb`; only devices that are such a slice fit.
    pub mig_profile: Option<DeviceType>,
    /// Whole TPUs.
    pub tpu: u16,
    /// Thousandths of a CPU.
    pub cpu_milli: u64,
    /// Host memory in bytes.
    pub memory: u64,
    /// Disk in bytes.
    pub disk: u64,
}

/// Parses a quantity of bytes: `4GB`, `4 GiB`, `1.5G`, `4096`.
///
/// # Errors
/// A text that says what is accepted.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    const ACCEPTED: &str = "a size such as 4GB (10^9), 4GiB (2^30) or a number of bytes";
    let text = text.trim();
    let split = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let (number, unit) = (&text[..split], text[split..].trim());
    let factor: u64 = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kb" => 1_000,
        "m" | "mb" => 1_000_000,
        "g" | "gb" => 1_000_000_000,
        "t" | "tb" => 1_000_000_000_000,
        "ki" | "kib" => 1 << 10,
        "mi" | "mib" => 1 << 20,
        "gi" | "gib" => 1 << 30,
        "ti" | "tib" => 1 << 40,
        _ => return Err(format!("not {ACCEPTED}: unknown unit \"{}\"", crate::reason::printable(unit, 12))),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() || fraction.len() > 6 || number.ends_with('.') {
        return Err(format!("not {ACCEPTED}"));
    }
    let too_large = || format!("not {ACCEPTED}: too large");
    let whole: u64 = whole.parse().map_err(|_| too_large())?;
    let micro: u64 = format!("{fraction:0<6}").parse().map_err(|_| format!("not {ACCEPTED}"))?;
    let bytes = u128::from(whole) * u128::from(factor) + u128::from(micro) * u128::from(factor) / 1_000_000;
    match u64::try_from(bytes) {
        Ok(bytes) if bytes <= MAX_BYTES => Ok(bytes),
        _ => Err(too_large()),
    }
}

/// The largest quantity of bytes that is accepted (8 PiB): so many that no machine has
/// more, so few that the replicas of a job can be summed up.
pub const MAX_BYTES: u64 = 1 << 53;
const _: () = assert!(MAX_BYTES.checked_mul(crate::job::MAX_REPLICAS as u64).is_some());

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_decimal_and_binary() {
        assert_eq!(parse_bytes("4GB"), Ok(4_000_000_000));
        assert_eq!(parse_bytes("4GiB"), Ok(4 << 30));
        assert_eq!(parse_bytes("1.5 GiB"), Ok(3 << 29));
        assert_eq!(parse_bytes("4096"), Ok(4096));
    }

    #[test]
    fn nonsense_is_refused_without_overflow() {
        for bad in ["", "GB", "-1", "1e9", "NaN", "4XB", "1.", ".5", "99999999999999999999", "1.2.3", "16000000TB"] {
            assert!(parse_bytes(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn devices_are_whole_or_part_of_one() {
        assert_eq!(Gpus::from_milli(500), Ok(Gpus::Milli(500)));
        assert_eq!(Gpus::from_milli(2000), Ok(Gpus::Whole(2)));
        assert!(Gpus::from_milli(1500).is_err());
        assert!(Gpus::from_milli(u64::MAX - u64::MAX % 1000).is_err());
        let slice = DeviceType::new("1g.10gb").ok();
        assert_eq!((Gpus::None.or_slice(slice.as_ref()), Gpus::None.or_slice(None)), (Gpus::Whole(1), Gpus::None));
        assert_eq!(Gpus::Whole(2).or_slice(slice.as_ref()), Gpus::Whole(2));
    }
}
