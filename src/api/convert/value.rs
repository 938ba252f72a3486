//! Single values as people write them: shares of devices, sizes, spans of time,
//! money. Each returns a text on refusal; the caller knows the field.

use nf_core::id::{DeviceType, Digest16};
use nf_core::resources::{MAX_BYTES, parse_bytes};

/// Longest text that is looked at as a quantity.
const MAX_TEXT: usize = 64;
/// The largest count in thousandths: a million whole ones.
const MAX_MILLI: f64 = 1e9;

/// Thousandths of a number that must be a multiple of 0.001.
pub fn milli(number: f64) -> Result<u64, String> {
    if !number.is_finite() || number < 0.0 {
        return Err(format!("a number from 0 on, not {number}"));
    }
    let scaled = number * 1000.0;
    let rounded = scaled.round();
    if rounded > MAX_MILLI {
        return Err(format!("at most {} , not {number}", MAX_MILLI / 1000.0));
    }
    // A multiple of 0.001 is off by rounding only; what is finer is refused, not rounded away.
    if (scaled - rounded).abs() > 1e-6 {
        return Err(format!("steps of 0.001, not {number}"));
    }
    Ok(rounded as u64)
}

/// The same from text, where `500m` means 0.5.
pub fn milli_text(text: &str) -> Result<u64, String> {
    let bad = || format!("a number such as 1, 0.5 or \"500m\", not \"{}\"", nf_core::reason::printable(text, 20));
    let trimmed = text.trim();
    let plain = |t: &str| !t.is_empty() && t.len() <= 20 && t.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    match trimmed.strip_suffix('m') {
        Some(thousandths) if plain(thousandths) && !thousandths.contains('.') => {
            thousandths.parse().ok().filter(|m| *m <= MAX_MILLI as u64).ok_or_else(bad)
        }
        None if plain(trimmed) => milli(trimmed.parse().map_err(|_| bad())?),
        _ => Err(bad()),
    }
}

/// A size such as `4GB`.
pub fn bytes(text: &str) -> Result<u64, String> {
    if text.len() > MAX_TEXT {
        return Err("a size such as 4GB (10^9) or 4GiB (2^30)".to_owned());
    }
    parse_bytes(text)
}

/// A size in plain bytes.
pub fn plain_bytes(bytes: u64) -> Result<u64, String> {
    if bytes > MAX_BYTES {
        return Err(format!("at most {MAX_BYTES} bytes, not {bytes}"));
    }
    Ok(bytes)
}

/// Money in millionths.
pub fn micro(number: f64) -> Result<u64, String> {
    if !number.is_finite() || !(0.0..=1e9).contains(&number) {
        return Err(format!("a price from 0 to 10^9, not {number}"));
    }
    Ok((number * 1e6).round() as u64)
}

/// The longest span that is accepted: ten years.
const MAX_SPAN_MS: f64 = 10.0 * 366.0 * 86_400_000.0;

/// Milliseconds of a number of seconds.
pub fn seconds(number: f64) -> Result<u64, String> {
    let ms = number * 1000.0;
    if !ms.is_finite() || !(1.0..=MAX_SPAN_MS).contains(&ms) {
        return Err(format!("seconds from 0.001 to ten years, not {number}"));
    }
    Ok(ms.round() as u64)
}

/// Milliseconds of a span such as `90s`, `10m`, `2h`, `250ms`, or plain seconds.
pub fn span(text: &str) -> Result<u64, String> {
    const ACCEPTED: &str = "a span such as 250ms, 90s, 10m, 2h or 1d";
    let text = text.trim();
    if text.len() > MAX_TEXT {
        return Err(ACCEPTED.to_owned());
    }
    let split = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let factor = match &text[split..] {
        "ms" => 0.001,
        "" | "s" => 1.0,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        "d" => 86_400.0,
        _ => return Err(ACCEPTED.to_owned()),
    };
    let number: f64 = text[..split].parse().map_err(|_| ACCEPTED.to_owned())?;
    seconds(number * factor)
}

/// `A|B` or `A,B` as device types.
pub fn device_types(text: &str) -> Result<Vec<DeviceType>, String> {
    if text.len() > 1024 {
        return Err("at most 1024 characters of device types".to_owned());
    }
    let each = text.split(['|', ',']).map(str::trim).filter(|t| !t.is_empty());
    let types = each.map(|t| DeviceType::new(t).map_err(|e| e.to_string())).collect::<Result<Vec<_>, _>>()?;
    if types.is_empty() {
        return Err("a device type such as H100-80G, or several as A|B".to_owned());
    }
    Ok(types)
}

/// 32 hexadecimal digits.
pub fn digest(text: &str) -> Result<Digest16, String> {
    let bad = || "the digest that nf plan printed: 32 hexadecimal digits".to_owned();
    if text.len() != 32 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(bad());
    }
    let mut out = [0; 16];
    for (i, byte) in out.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * i..2 * i + 2], 16).map_err(|_| bad())?;
    }
    Ok(Digest16(out))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_exact_to_a_thousandth() {
        assert_eq!(milli(0.1), Ok(100));
        assert_eq!(milli(0.001), Ok(1));
        assert_eq!(milli(6.0), Ok(6000));
        for bad in [-1.0, f64::NAN, f64::INFINITY, 0.0005, 1e18] {
            assert!(milli(bad).is_err(), "{bad}");
        }
        assert_eq!((milli_text("0.5"), milli_text("500m"), milli_text("2")), (Ok(500), Ok(500), Ok(2000)));
        for bad in ["", "-1", "NaN", "1e3", "0.5m", "m", "99999999999999999999m", "½"] {
            assert!(milli_text(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn spans_and_digests() {
        assert_eq!((span("250ms"), span("90"), span("1.5h")), (Ok(250), Ok(90_000), Ok(5_400_000)));
        for bad in ["", "ms", "-1s", "1y", "0", "99999999999d"] {
            assert!(span(bad).is_err(), "{bad}");
        }
        let digest16 = Digest16::of(&[b"x"]);
        assert_eq!(digest(&digest16.to_string()), Ok(digest16));
        assert!(digest("zz").is_err() && digest(&"é".repeat(16)).is_err());
    }
}
