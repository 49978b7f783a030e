//! `ashlar stats --plot`: a drawing of a store, as SVG. A row for each sorted run, newest on top; a
//! box for each segment, as wide as its range of keys.
//!
//! Keys are laid out by rank: the first and last keys of all segments of a keyspace, sorted, stand at
//! equal distances. So skewed keys do not squeeze the picture, and what lines up overlaps.

use crate::bytes::escape;
use crate::output::human_bytes;
use ashlardb::SegmentSummary;
use std::collections::BTreeMap;

const WIDTH: f64 = 1000.0;
const LABELS: f64 = 190.0;
const ROW: f64 = 22.0;
const GAP: f64 = 6.0;
const MARGIN: f64 = 16.0;

/// The drawing of all keyspaces, one below the other.
pub fn svg(segments: &[SegmentSummary]) -> String {
    let mut by_keyspace: BTreeMap<&str, Vec<&SegmentSummary>> = BTreeMap::new();
    for segment in segments {
        by_keyspace.entry(&segment.keyspace).or_default().push(segment);
    }
    let mut body = String::new();
    let mut y = MARGIN;
    if by_keyspace.is_empty() {
        y += ROW;
        text(&mut body, MARGIN, y, "no segments: everything is in memtables, or there is nothing");
    }
    for (name, segments) in by_keyspace {
        y = draw_keyspace(&mut body, y, name, &segments);
    }
    let (width, height) = (LABELS + WIDTH + 2.0 * MARGIN, y + MARGIN);
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" \
         width=\"{width:.0}\" height=\"{height:.0}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n{body}</svg>\n"
    )
}

fn draw_keyspace(body: &mut String, mut y: f64, name: &str, segments: &[&SegmentSummary]) -> f64 {
    let mut keys: Vec<&[u8]> =
        segments.iter().flat_map(|s| [&s.first_key[..], &s.last_key[..]]).collect();
    keys.sort_unstable();
    keys.dedup();
    let steps = keys.len().saturating_sub(1).max(1) as f64;
    let x_of = |key: &[u8]| {
        let rank = keys.partition_point(|other| *other < key);
        MARGIN + LABELS + WIDTH * rank as f64 / steps
    };
    let bytes: u64 = segments.iter().map(|s| s.file_bytes).sum();
    y += ROW;
    let title =
        format!("{}: {} segments, {}", escape(name.as_bytes()), segments.len(), human_bytes(bytes));
    text(body, MARGIN, y - GAP, &title);
    let mut runs: BTreeMap<(usize, usize), Vec<&SegmentSummary>> = BTreeMap::new();
    for segment in segments {
        runs.entry((segment.level, segment.run)).or_default().push(segment);
    }
    let mut last_level = None;
    for ((level, run), segments) in runs {
        if last_level.is_some_and(|last| last != level) {
            y += GAP;
        }
        last_level = Some(level);
        let bytes: u64 = segments.iter().map(|s| s.file_bytes).sum();
        let label = format!("level {level}, run {run}: {}", human_bytes(bytes));
        text(body, MARGIN, y + ROW - GAP, &label);
        for segment in segments {
            draw_segment(body, y, segment, &x_of);
        }
        y += ROW;
    }
    y + GAP
}

fn draw_segment(body: &mut String, y: f64, s: &SegmentSummary, x_of: &dyn Fn(&[u8]) -> f64) {
    let x = x_of(&s.first_key);
    let width = (x_of(&s.last_key) - x).max(2.0);
    // The more tombstones, the redder.
    let dead = s.tombstones as f64 / s.entries.max(1) as f64;
    let hue = 210.0 - 200.0 * dead;
    let lightness = 58.0 + 5.0 * s.level.min(6) as f64;
    let tip = format!(
        "segment {}: {}, {} entries, {} tombstones, keys {} to {}",
        s.id,
        human_bytes(s.file_bytes),
        s.entries,
        s.tombstones,
        shortened(&s.first_key),
        shortened(&s.last_key)
    );
    body.push_str(&format!(
        "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{:.1}\" \
         fill=\"hsl({hue:.0},55%,{lightness:.0}%)\" stroke=\"#ffffff\" stroke-width=\"0.5\">\
         <title>{}</title></rect>\n",
        ROW - 2.0,
        xml(&tip)
    ));
}

fn shortened(key: &[u8]) -> String {
    const MOST: usize = 40;
    if key.len() <= MOST { escape(key) } else { format!("{}…", escape(&key[..MOST])) }
}

fn text(body: &mut String, x: f64, y: f64, text: &str) {
    body.push_str(&format!(
        "<text x=\"{x:.1}\" y=\"{y:.1}\" fill=\"#222222\">{}</text>\n",
        xml(text)
    ));
}

fn xml(text: &str) -> String {
    text.chars().fold(String::new(), |mut out, c| {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            // XML takes no other control characters, not even escaped.
            c if c.is_control() => out.push('\u{fffd}'),
            c => out.push(c),
        }
        out
    })
}
