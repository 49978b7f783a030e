//! Bar charts as SVG. Within a workload the longest bar is the fastest engine; the figures stand beside
//! the bars. There is no background, and the colours can be read on a light and on a dark one.

use crate::engines::Outcome;
use crate::record::Record;
use crate::summary::{Summary, summaries};
use crate::table::number;
use crate::targets::Metric;
use std::fmt::Write;
use std::path::Path;

/// One chart: its name, its title and what belongs to it.
type Chart = (&'static str, &'static str, fn(&str) -> bool);

const CHARTS: [Chart; 4] = [
    ("writes", "Writes a second", |name| {
        name.starts_with("fill") || ["overwrite", "deleterandom"].contains(&name)
    }),
    ("reads", "Point reads a second", |name| {
        ["readrandom", "readmissing", "readhot"].contains(&name)
            || name == "readrandom2"
            || name.starts_with("readwhile")
    }),
    ("scans", "Range reads a second; entries a second for readseq and readreverse", |name| {
        name.starts_with("seek") || ["readseq", "readreverse"].contains(&name)
    }),
    ("ycsb", "YCSB, operations a second", |name| name.starts_with("ycsb")),
];

const LABEL: f64 = 190.0;
const BARS: f64 = 430.0;
const FIGURE: f64 = 100.0;
const BAR: f64 = 11.0;
const GAP: f64 = 12.0;
const TOP: f64 = 64.0;
/// Between white and black, so that it can be read on both.
const TEXT: &str = "#808892";

fn colour(engine: &str) -> &'static str {
    match engine {
        "ashlardb" => "#d9622b",
        "rocksdb" => "#3f7fbf",
        "fjall" => "#5aa0a0",
        "lmdb" => "#7a9a3c",
        "redb" => "#a8709c",
        _ => "#9a8a6a",
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

fn text(out: &mut String, at: (f64, f64), anchor: &str, size: u32, what: &str) {
    let _ = writeln!(
        out,
        r#"<text x="{:.1}" y="{:.1}" text-anchor="{anchor}" font-size="{size}">{}</text>"#,
        at.0,
        at.1,
        escape(what)
    );
}

/// The chart of one kind of workloads, if any of them was measured.
#[must_use]
pub fn chart(summary: &Summary<'_>, title: &str, belongs: fn(&str) -> bool) -> Option<String> {
    let engines = summary.engines();
    let workloads: Vec<_> = summary.workloads().into_iter().filter(|name| belongs(name)).collect();
    if workloads.is_empty() {
        return None;
    }
    let block = engines.len() as f64 * BAR + GAP;
    let (width, height) = (LABEL + BARS + FIGURE, TOP + block * workloads.len() as f64);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" \
         font-family=\"system-ui, sans-serif\" fill=\"{TEXT}\">\n<title>{}</title>\n",
        escape(title)
    );
    text(&mut out, (8.0, 18.0), "start", 15, title);
    text(&mut out, (8.0, 35.0), "start", 11, &summary.title);
    let mut x = 8.0;
    for engine in &engines {
        let colour = colour(engine);
        let _ = writeln!(out, r#"<rect x="{x}" y="43" width="10" height="10" fill="{colour}"/>"#);
        let weaker = summary.promises_less(engine);
        let label = if weaker { format!("{engine}*") } else { (*engine).to_string() };
        text(&mut out, (x + 14.0, 52.0), "start", 11, &label);
        x += 24.0 + 6.5 * label.len() as f64;
    }
    if engines.iter().any(|engine| summary.promises_less(engine)) {
        text(&mut out, (width - 8.0, 52.0), "end", 10, "* its unsynced writes promise less");
    }
    for (nth, workload) in workloads.iter().enumerate() {
        let top = TOP + block * nth as f64;
        let rates: Vec<_> =
            engines.iter().map(|engine| summary.value(engine, workload, Metric::Rate)).collect();
        let most = rates.iter().flatten().copied().fold(f64::MIN_POSITIVE, f64::max);
        let middle = top + (block - GAP) / 2.0 + 4.0;
        text(&mut out, (LABEL - 8.0, middle), "end", 12, workload);
        for (row, (engine, rate)) in engines.iter().zip(&rates).enumerate() {
            let Some(rate) = rate else { continue };
            let y = top + BAR * row as f64;
            let length = (BARS * rate / most).max(1.0);
            let _ = writeln!(
                out,
                r#"<rect x="{LABEL}" y="{y:.1}" width="{length:.1}" height="{}" fill="{}"/>"#,
                BAR - 2.0,
                colour(engine)
            );
            text(&mut out, (LABEL + length + 5.0, y + BAR - 3.0), "start", 10, &number(*rate));
        }
    }
    out.push_str("</svg>\n");
    Some(out)
}

/// Writes all charts of all settings into a directory.
pub fn write(records: &[Record], dir: &Path) -> Outcome {
    std::fs::create_dir_all(dir)?;
    for summary in &summaries(records) {
        let preset = summary.title.split(':').next().unwrap_or_default();
        for (name, title, belongs) in CHARTS {
            if let Some(svg) = chart(summary, title, belongs) {
                let path = dir.join(format!("{preset}-{name}.svg"));
                std::fs::write(&path, svg)?;
                println!("{}", path.display());
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::workloads;
    use crate::summary::tests::record;

    #[test]
    fn the_fastest_has_the_longest_bar() {
        let records =
            [record(0, "ashlardb", "readrandom", 400.0), record(0, "lmdb", "readrandom", 100.0)];
        let summaries = summaries(&records);
        let svg = chart(&summaries[0], "Reads & more", CHARTS[1].2).unwrap();
        assert!(svg.contains("Reads &amp; more") && svg.trim_end().ends_with("</svg>"));
        assert!(svg.contains(&format!(r#"width="{BARS:.1}""#)), "{svg}");
        assert!(svg.contains(&format!(r#"width="{:.1}""#, BARS / 4.0)), "{svg}");
        assert_eq!(chart(&summaries[0], "Writes", CHARTS[0].2), None);
    }

    #[test]
    fn every_workload_is_in_one_chart_but_opening() {
        for workload in workloads() {
            let charts = CHARTS.iter().filter(|chart| chart.2(workload)).count();
            assert_eq!(charts, usize::from(!workload.starts_with("open")), "{workload}");
        }
    }
}
