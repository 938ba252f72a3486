//! A replay as a picture: what came above, how many replicas each policy had below.
//! It knows no policy but by name.

use super::super::svg::{COLOURS, escaped};
use nf_core::autoscaler::replay::table::Line;
use std::fmt::Write;

const WIDTH: u64 = 1100;
const LEFT: u64 = 60;
/// Top and height of the two panels.
const PANELS: [(u64, u64); 2] = [(40, 160), (240, 300)];

/// An SVG of all lines; empty panels when nothing came.
pub fn svg(name: &str, lines: &[Line]) -> String {
    let minutes = lines.first().map_or(&[][..], |line| &line.outcome.minutes);
    let end = minutes.last().map_or(1, |m| m.0.max(1));
    let busiest = minutes.iter().map(|m| m.1).max().unwrap_or(1).max(1);
    let most = lines.iter().flat_map(|line| &line.outcome.minutes).map(|m| u64::from(m.2)).max().unwrap_or(1).max(1);
    let height = PANELS[1].0 + PANELS[1].1 + 40 + 20 * lines.len() as u64;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{}\" height=\"{height}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n",
        WIDTH + LEFT + 20
    );
    let _ = writeln!(out, "<text x=\"{LEFT}\" y=\"20\" font-size=\"15\">{}</text>", escaped(name));
    frame(&mut out, PANELS[0], &format!("{busiest} requests a minute"));
    frame(&mut out, PANELS[1], &format!("{most} replicas"));
    let points = |panel: (u64, u64), top: u64, values: &mut dyn Iterator<Item = (u64, u64)>| {
        values.fold(String::new(), |mut text, (at, value)| {
            let _ = write!(text, "{},{} ", LEFT + at * WIDTH / end, panel.0 + panel.1 - value.min(top) * panel.1 / top);
            text
        })
    };
    let came = points(PANELS[0], busiest, &mut minutes.iter().map(|m| (m.0, m.1)));
    let _ = writeln!(out, "<polyline fill=\"none\" stroke=\"#333\" points=\"{came}\"/>");
    // Ours is drawn last, on top.
    for (i, line) in lines.iter().enumerate().rev() {
        let colour = COLOURS[i % COLOURS.len()];
        let had = points(PANELS[1], most, &mut line.outcome.minutes.iter().map(|m| (m.0, m.2.into())));
        let stroke = if i == 0 { 2 } else { 1 };
        let _ =
            writeln!(out, "<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"{stroke}\" points=\"{had}\"/>");
        let (y, in_time, times) =
            (PANELS[1].0 + PANELS[1].1 + 40 + 20 * i as u64, line.outcome.attainment_m(), line.times_oracle_m);
        let _ = writeln!(
            out,
            "<rect x=\"{LEFT}\" y=\"{}\" width=\"14\" height=\"4\" fill=\"{colour}\"/><text x=\"{}\" y=\"{y}\">{}: {}.{:03} % \
             in time at {}.{:03} × the oracle's GPU-hours</text>",
            y - 6,
            LEFT + 22,
            escaped(&line.rule.name()),
            in_time / 1000,
            in_time % 1000,
            times / 1000,
            times % 1000
        );
    }
    let _ = writeln!(
        out,
        "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}.{} hours</text>\n</svg>",
        LEFT + WIDTH,
        PANELS[1].0 + PANELS[1].1 + 16,
        end / 3600,
        end % 3600 / 360
    );
    out
}

fn frame(out: &mut String, (top, height): (u64, u64), label: &str) {
    let _ = writeln!(
        out,
        "<rect x=\"{LEFT}\" y=\"{top}\" width=\"{WIDTH}\" height=\"{height}\" fill=\"none\" stroke=\"#ccc\"/><text x=\"{LEFT}\" \
         y=\"{}\" fill=\"#666\">{label}</text>",
        top - 4
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use nf_core::autoscaler::Service;
    use nf_core::autoscaler::replay::Rule;
    use nf_core::autoscaler::replay::load::{Load, Request};
    use nf_core::autoscaler::replay::table::Terms;

    #[test]
    fn every_policy_is_drawn_and_named() {
        let requests = (0..600).map(|i| Request { at_ms: i * 500, takes_ms: 1000 }).collect();
        let load = Load { requests, length_ms: 300_000 };
        let terms = Terms { service: Service::default(), start: None, impatient: false };
        let lines = terms.compare(&load, &[Rule::Nf, Rule::Hpa(700), Rule::Oracle]).unwrap();
        let text = svg("a<b", &lines);
        assert!(text.starts_with("<svg") && text.ends_with("</svg>\n") && text.contains("a&lt;b"), "{text}");
        assert_eq!(text.matches("<polyline").count(), 4);
        assert!(["nf: ", "hpa: ", "oracle: "].iter().all(|name| text.contains(name)));
        assert!(svg("none", &[]).contains("0 hours") || svg("none", &[]).contains("</svg>"));
    }
}
