//! Allocation against arrivals as an SVG picture, one line per policy. It knows curves
//! and colours only.

use super::super::svg::{COLOURS, escaped};
use super::replay::Outcome;
use std::fmt::Write;

const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 520.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 190.0;
const TOP: f64 = 48.0;
const BOTTOM: f64 = 56.0;

/// The picture of all outcomes.
pub fn svg(title: &str, outcomes: &[Outcome]) -> String {
    let widest = outcomes.iter().flat_map(|o| &o.curve).map(|(x, _)| *x).fold(100.0, f64::max);
    let x = |percent: f64| LEFT + percent / widest * (WIDTH - LEFT - RIGHT);
    let y = |percent: f64| HEIGHT - BOTTOM - percent / 100.0 * (HEIGHT - TOP - BOTTOM);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"13\">\n<rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"#ffffff\"/>\n"
    );
    let mut text = |at: (f64, f64), anchor: &str, what: &str| {
        let (x, y) = at;
        let what = escaped(what);
        let _ =
            writeln!(out, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" fill=\"#222222\">{what}</text>");
    };
    text((LEFT, TOP - 18.0), "start", title);
    text((x(widest / 2.0), HEIGHT - 14.0), "middle", "GPUs asked for so far, % of capacity");
    text((LEFT, TOP - 2.0), "start", "GPUs allocated, % of capacity");
    for step in 0..=5 {
        text((LEFT - 8.0, y(f64::from(step) * 20.0) + 4.0), "end", &format!("{}", step * 20));
    }
    let steps = (widest / 20.0) as u32;
    for step in 0..=steps {
        text((x(f64::from(step) * 20.0), HEIGHT - BOTTOM + 18.0), "middle", &format!("{}", step * 20));
    }
    for (i, outcome) in outcomes.iter().enumerate() {
        let end = outcome.curve.last().map_or(0.0, |(_, y)| *y);
        let label = format!("{} {end:.2}", outcome.policy.name());
        text((WIDTH - RIGHT + 34.0, TOP + 14.0 + 20.0 * i as f64), "start", &label);
    }
    for step in 0..=5 {
        let at = y(f64::from(step) * 20.0);
        let _ = writeln!(out, "<path d=\"M{LEFT} {at:.1}H{:.1}\" stroke=\"#dddddd\"/>", x(widest));
    }
    for (i, outcome) in outcomes.iter().enumerate() {
        let colour = COLOURS[i % COLOURS.len()];
        let points: Vec<String> = outcome.curve.iter().map(|(a, b)| format!("{:.1},{:.1}", x(*a), y(*b))).collect();
        let line = TOP + 10.0 + 20.0 * i as f64;
        let _ = writeln!(
            out,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>\n<path d=\"M{:.1} {line:.1}h24\" stroke=\"{colour}\" stroke-width=\"3\"/>",
            points.join(" "),
            WIDTH - RIGHT + 6.0
        );
    }
    out.push_str("</svg>\n");
    out
}
