//! Output: JSON shapes as tables for people, or as JSON, JSON lines, YAML and
//! names for programs. Data goes to stdout alone. It does not know where data
//! comes from.

use anyhow::Result;
use clap::ValueEnum;
use comfy_table::{Table, presets};
use serde_json::Value;
use std::io::{IsTerminal, Write};

/// `-o`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    #[default]
    Table,
    Wide,
    Json,
    Jsonl,
    Yaml,
    Name,
}

/// How one column is made of an item.
pub struct Column {
    pub head: &'static str,
    /// Shown by `-o wide` alone.
    pub wide: bool,
    pub cell: fn(&Value) -> String,
}

/// A column that is always there.
pub const fn col(head: &'static str, cell: fn(&Value) -> String) -> Column {
    Column { head, wide: false, cell }
}

/// A column of `-o wide`.
pub const fn wide(head: &'static str, cell: fn(&Value) -> String) -> Column {
    Column { head, wide: true, cell }
}

/// What the user asked for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Style {
    pub format: Format,
    pub no_headers: bool,
}

/// A list as text in the given style. `id` names an item.
pub fn list(style: Style, items: &[Value], columns: &[Column], id: fn(&Value) -> String) -> Result<String> {
    Ok(match style.format {
        Format::Table | Format::Wide => table(style, items, columns),
        Format::Json => format!("{}\n", serde_json::to_string_pretty(&serde_json::json!({ "items": items }))?),
        Format::Jsonl => items.iter().map(|item| format!("{item}\n")).collect(),
        Format::Yaml => serde_yaml_ng::to_string(&items)?,
        Format::Name => items.iter().map(|item| format!("{}\n", id(item))).collect(),
    })
}

/// A list that the API gave out: as JSON it is in the API's own shape, `envelope` with the items in it.
pub fn listing(
    style: Style,
    envelope: &Value,
    items: &[Value],
    columns: &[Column],
    id: fn(&Value) -> String,
) -> Result<String> {
    if style.format != Format::Json {
        return list(style, items, columns, id);
    }
    let mut whole = envelope.clone();
    match whole.as_object_mut() {
        Some(fields) => drop(fields.insert("items".to_owned(), Value::Array(items.to_vec()))),
        None => whole = serde_json::json!({ "items": items }),
    }
    Ok(format!("{}\n", serde_json::to_string_pretty(&whole)?))
}

/// One object as text; `people` is its form for people.
pub fn object(style: Style, value: &Value, name: &str, people: impl FnOnce() -> String) -> Result<String> {
    Ok(match style.format {
        Format::Table | Format::Wide => people(),
        Format::Json => format!("{}\n", serde_json::to_string_pretty(value)?),
        Format::Jsonl => format!("{value}\n"),
        Format::Yaml => serde_yaml_ng::to_string(value)?,
        Format::Name => format!("{name}\n"),
    })
}

fn table(style: Style, items: &[Value], columns: &[Column]) -> String {
    if items.is_empty() {
        return String::new();
    }
    let shown: Vec<_> = columns.iter().filter(|c| !c.wide || style.format == Format::Wide).collect();
    let mut table = plain_table();
    if !style.no_headers {
        table.set_header(shown.iter().map(|c| c.head));
    }
    for item in items {
        table.add_row(shown.iter().map(|c| (c.cell)(item)));
    }
    trimmed(&table)
}

/// Columns without rules, as kubectl prints them.
pub fn plain_table() -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(comfy_table::ContentArrangement::Disabled);
    table
}

/// A table's lines without blanks at their ends.
pub fn trimmed(table: &Table) -> String {
    table.lines().map(|line| format!("{}\n", line.strip_prefix(' ').unwrap_or(&line).trim_end())).collect()
}

/// Writes data to stdout; a closed pipe is not our trouble.
pub fn put(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// A state with its glyph, coloured on a terminal.
pub fn state(word: &str) -> String {
    let (glyph, colour) = match word {
        "Running" | "Ready" | "Succeeded" | "leader" | "follower" | "voter" | "Admitted" | "Healthy" | "ok"
        | "successful" => ("●", 32),
        "Failed" | "Lost" | "Down" | "Preempted" | "gone" | "fault" | "failed" => ("✗", 31),
        _ => ("○", 33),
    };
    match coloured() {
        true => format!("\u{1b}[{colour}m{glyph}\u{1b}[0m {word}"),
        false => format!("{glyph} {word}"),
    }
}

fn coloured() -> bool {
    let set = |name: &str| std::env::var_os(name).is_some_and(|v| !v.is_empty());
    std::io::stdout().is_terminal() && !set("NO_COLOR") && std::env::var_os("TERM").is_none_or(|t| t != "dumb")
}

/// The value at a path such as `placement.node`, as text; "-" when it is not there.
pub fn at(item: &Value, path: &str) -> String {
    let found = path.split('.').try_fold(item, |value, key| match key.parse::<usize>() {
        Ok(index) if value.is_array() => value.get(index),
        _ => value.get(key),
    });
    found.map_or_else(|| "-".to_owned(), text)
}

/// A value for people: no quotes, whole numbers without a fraction.
fn text(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(items) if items.is_empty() => "-".to_owned(),
        Value::Array(items) => items.iter().map(text).collect::<Vec<_>>().join(","),
        Value::Number(number) => match number.as_f64() {
            Some(whole) if number.is_f64() && whole.fract() == 0.0 && whole.abs() < 1e15 => format!("{whole:.0}"),
            _ => number.to_string(),
        },
        other => other.to_string(),
    }
}

/// Bytes as `80Gi`.
pub fn bytes(n: u64) -> String {
    let units = ["", "Ki", "Mi", "Gi", "Ti", "Pi"];
    let (mut value, mut unit) = (n as f64, 0);
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    let text = format!("{value:.1}");
    format!("{}{}", text.strip_suffix(".0").unwrap_or(&text), units[unit])
}

/// Thousandths as a decimal number: 1500 → 1.5.
pub fn milli(n: u64) -> String {
    match n % 1000 {
        0 => (n / 1000).to_string(),
        rest => format!("{}.{rest:03}", n / 1000).trim_end_matches('0').to_owned(),
    }
}

/// Seconds as people say an age: 45s, 3m, 5h, 2d.
pub fn age(seconds: u64) -> String {
    match seconds {
        0..=119 => format!("{seconds}s"),
        120..=7199 => format!("{}m", seconds / 60),
        7200..=172_799 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// The age of an RFC 3339 time.
pub fn age_of(item: &Value, key: &str) -> String {
    let now = jiff::Timestamp::now().as_millisecond();
    let then = item.get(key).and_then(Value::as_str).and_then(|text| text.parse::<jiff::Timestamp>().ok());
    let then = then.map(|time| time.as_millisecond());
    then.map_or("-".to_owned(), |then| age(now.saturating_sub(then).max(0) as u64 / 1000))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const COLUMNS: &[Column] =
        &[col("NAME", |v| at(v, "name")), col("STATE", |v| state(&at(v, "state"))), wide("HOST", |v| at(v, "host"))];

    fn shown(format: Format) -> String {
        let items = [json!({"name":"n1","state":"Ready","host":"h"}), json!({"name":"long-name","state":"Down"})];
        list(Style { format, no_headers: false }, &items, COLUMNS, |v| at(v, "name")).unwrap()
    }

    #[test]
    fn a_table_has_columns_and_no_rules() {
        assert_eq!(shown(Format::Table), "NAME       STATE\nn1         ● Ready\nlong-name  ✗ Down\n");
        assert!(shown(Format::Wide).contains("HOST"), "{}", shown(Format::Wide));
    }

    #[test]
    fn programs_get_the_same_items_in_each_format() {
        assert_eq!(shown(Format::Name), "n1\nlong-name\n");
        assert_eq!(shown(Format::Jsonl).lines().count(), 2);
        let json: Value = serde_json::from_str(&shown(Format::Json)).unwrap();
        assert_eq!(json["items"][1]["name"], "long-name");
        assert!(shown(Format::Yaml).starts_with("- name: n1\n") || shown(Format::Yaml).contains("name: n1"));
        assert_eq!(list(Style::default(), &[], COLUMNS, |_| String::new()).unwrap(), "");
    }

    #[test]
    fn a_list_of_the_api_is_json_in_its_own_shape() {
        let envelope = json!({"items": null, "next_token": null, "simulation": true, "index": 7});
        let shown = |format| {
            let style = Style { format, no_headers: false };
            listing(style, &envelope, &[json!({"name":"n1"})], COLUMNS, |v| at(v, "name")).unwrap()
        };
        let value: Value = serde_json::from_str(&shown(Format::Json)).unwrap();
        assert_eq!(value, json!({"items":[{"name":"n1"}],"next_token":null,"simulation":true,"index":7}));
        assert_eq!(shown(Format::Name), "n1\n");
    }

    #[test]
    fn values_are_told_without_their_json() {
        let item = json!({"a": 2.0, "b": 0.5, "c": ["x", "y"], "d": [], "e": null, "f": {"g": true}});
        let told: Vec<_> = ["a", "b", "c", "c.1", "d", "e", "f.g", "h"].iter().map(|path| at(&item, path)).collect();
        assert_eq!(told, ["2", "0.5", "x,y", "y", "-", "-", "true", "-"]);
    }

    #[test]
    fn numbers_are_short() {
        assert_eq!((bytes(80 << 30), bytes(3 << 29), bytes(5)), ("80Gi".into(), "1.5Gi".into(), "5".into()));
        assert_eq!((milli(2000), milli(1500), milli(1)), ("2".into(), "1.5".into(), "0.001".into()));
        assert_eq!((age(59), age(180), age(86_400 * 3)), ("59s".into(), "3m".into(), "3d".into()));
    }
}
