//! A progress bar on standard error, when that is a terminal; silence otherwise.

use indicatif::{HumanCount, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};
use std::fmt;
use std::io::{self, IsTerminal, Read};

/// How far a long command is. Removes its bar when dropped.
pub struct Progress(ProgressBar);

impl Progress {
    /// Progress in bytes, out of `total` if that is known.
    pub fn bytes(total: Option<u64>) -> Progress {
        let template = if total.is_some() {
            "{wide_bar} {binary_bytes}/{binary_total_bytes}  {binary_bytes_per_sec}  {eta} left  {msg}"
        } else {
            "{spinner} {binary_bytes}  {binary_bytes_per_sec}  {msg}"
        };
        Progress::new(total, template)
    }

    /// Progress in rows, whose number is not known before the end.
    pub fn rows() -> Progress {
        Progress::new(None, "{spinner} {human_pos} rows  {rate} rows/s")
    }

    /// Progress in steps, whose number is said with each.
    pub fn steps() -> Progress {
        Progress::new(Some(0), "{wide_bar} {human_pos}/{human_len}  {eta} left  {msg}")
    }

    fn new(total: Option<u64>, template: &str) -> Progress {
        let target = if io::stderr().is_terminal() {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        };
        let style = ProgressStyle::with_template(template);
        let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
        let style = style.with_key("rate", |state: &ProgressState, out: &mut dyn fmt::Write| {
            // Only for show: if it cannot be written, it is not seen.
            write!(out, "{}", HumanCount(state.per_sec() as u64)).unwrap_or_default();
        });
        Progress(ProgressBar::with_draw_target(total, target).with_style(style))
    }

    /// Counts what is read.
    pub fn watch<R: Read>(&self, input: R) -> impl Read + use<R> {
        self.0.wrap_read(input)
    }

    pub fn set(&self, done: u64, total: u64) {
        self.0.set_length(total);
        self.0.set_position(done);
    }

    pub fn add(&self, done: u64) {
        self.0.inc(done);
    }

    pub fn message(&self, message: String) {
        self.0.set_message(message);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
