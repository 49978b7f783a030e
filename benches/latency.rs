//! How long single writes take under a load that background work cannot keep up with: the tail is
//! what back-pressure makes of it. `cargo bench --bench latency`.

use ashlardb::{Compression, Db};
use std::time::Instant;

fn main() {
    if std::env::args().any(|argument| argument == "--test") {
        return;
    }
    const PUTS: u64 = 3_000_000;
    let dir = tempfile::tempdir().expect("a directory");
    let db = Db::builder(dir.path().join("db"))
        .compression(Compression::None)
        .write_buffer_bytes(16 << 20)
        .open()
        .expect("open");
    let mut took: Vec<u64> = Vec::with_capacity(PUTS as usize);
    let start = Instant::now();
    for n in 0..PUTS {
        let key = n.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_be_bytes().repeat(2);
        let begin = Instant::now();
        db.put(&key, [n as u8; 100]).expect("put");
        took.push(u64::try_from(begin.elapsed().as_nanos()).unwrap_or(u64::MAX));
    }
    let seconds = start.elapsed().as_secs_f64();
    took.sort_unstable();
    let at = |share: f64| took[((took.len() - 1) as f64 * share) as usize] as f64 / 1000.0;
    println!("{PUTS} random puts of 16 + 100 bytes, {:.0} a second", PUTS as f64 / seconds);
    println!(
        "p50 {:.1} us, p99 {:.1} us, p99.9 {:.1} us, p99.99 {:.1} us, longest {:.1} us",
        at(0.5),
        at(0.99),
        at(0.999),
        at(0.9999),
        at(1.0)
    );
    print!("{}", db.stats());
}
