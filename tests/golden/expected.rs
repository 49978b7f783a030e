//! The lines of the files `*.expected.jsonl`: see `testdata/README.md`.

use super::bytes::{hex, show_key, show_value};
use super::database::{self, Files, read_manifest};
use super::make::READ_AT_MS;
use super::segment::{BlockLine, Description, OPTIONAL_PROPERTY_NAMES, PROPERTY_NAMES, Segment};
use ashlardb::{Compression, SegmentReader};
use xxhash_rust::xxh3::xxh3_64;

/// Of longer lists of entries, every 41st is given, and a hash of all lines.
const ENTRIES_MAX: usize = 1_000;
const EVERY: usize = 41;

pub fn text(lines: &[String]) -> Vec<u8> {
    lines.iter().flat_map(|line| [line.as_bytes(), b"\n"].concat()).collect()
}

fn show_expiry(expiry: Option<u64>) -> String {
    expiry.map_or(String::new(), |expiry| format!("\"expiry\":{expiry},"))
}

pub fn segment(name: &str, segment: &Segment) -> Vec<String> {
    let d = &segment.description;
    let mut lines = vec![
        format!(
            "{{\"segment\":\"{name}.seg\",\"uuid\":\"{}\",\"file_length\":{},\"data_bytes\":{},\
             \"footer_checksum\":\"{:016x}\",\"codec\":{},\"level\":{},\"first_key\":\"{}\",\
             \"last_key\":\"{}\"}}",
            hex(&d.uuid),
            d.file_length,
            d.data_bytes,
            d.footer_checksum,
            d.codec,
            d.level,
            show_key(&d.first_key),
            show_key(&d.last_key)
        ),
        format!("{{\"properties\":{{{}}}}}", {
            let there = |(id, _): &&(u16, &str)| d.properties.contains_key(id);
            let optional = OPTIONAL_PROPERTY_NAMES.iter().filter(there);
            let pairs = PROPERTY_NAMES.iter().chain(optional);
            let pairs: Vec<String> =
                pairs.map(|(id, name)| format!("\"{name}\":{}", d.properties[id])).collect();
            pairs.join(",")
        }),
    ];
    lines.extend(d.sections.iter().map(|(id, offset, length)| {
        format!("{{\"section\":{id},\"offset\":{offset},\"length\":{length}}}")
    }));
    lines.extend(d.blocks.iter().enumerate().map(|(i, b)| {
        format!(
            "{{\"block\":{i},\"offset\":{},\"pages\":{},\"entries\":{},\"codec\":{},\
             \"separator\":\"{}\"}}",
            b.offset,
            b.pages,
            b.entries,
            b.codec,
            show_key(&b.separator)
        )
    }));
    let entries = segment.entries.iter().map(|entry| {
        format!(
            "{{\"key\":\"{}\",\"seqno\":{},\"kind\":{},{}{}}}",
            show_key(&entry.key),
            entry.seqno,
            entry.kind,
            show_expiry(entry.expiry),
            show_value(&entry.value)
        )
    });
    let entries: Vec<String> = entries.collect();
    if entries.len() <= ENTRIES_MAX {
        lines.extend(entries);
    } else {
        let all = text(&entries);
        lines.extend(entries.iter().step_by(EVERY).cloned());
        lines.push(format!(
            "{{\"every\":{EVERY},\"of\":{},\"xxh3_of_all_lines\":\"{:016x}\"}}",
            entries.len(),
            xxh3_64(&all)
        ));
    }
    lines
}

/// The same from the library.
pub fn describe(reader: &SegmentReader) -> Description {
    let p = reader.properties();
    let properties = [
        (1, p.created_ms),
        (2, p.entries),
        (3, p.tombstones),
        (4, p.merge_operands),
        (5, p.blocks),
        (7, p.smallest_seqno.0),
        (8, p.largest_seqno.0),
        (9, p.raw_bytes),
        (10, p.stored_bytes),
        (11, p.keyspace.map_or(u64::from(u32::MAX), |id| id.0.into())),
        (12, p.hash_seed),
        (13, p.distinct_keys),
        (14, p.range_tombstones),
    ];
    let optional = [
        (16, p.numbered_from.0),
        (0x8010, p.deletes_applied.0),
        (0x8011, p.expiring),
        (0x8012, p.first_expiry_ms),
        (0x8013, p.last_expiry_ms),
    ];
    let there = optional.into_iter().filter(|(_, n)| *n != 0);
    let properties = properties.into_iter().chain(there);
    let (codec, level) = match reader.compression().expect("a tag") {
        Compression::None => (0, 0),
        Compression::Lz4 => (1, 0),
        Compression::Zstd(level) => (2, level),
        other => panic!("{other}"),
    };
    let blocks = reader.blocks().map(|block| {
        let block = block.expect("a sound block");
        BlockLine {
            offset: block.offset,
            pages: block.pages.into(),
            entries: block.entries.into(),
            codec: block.codec,
            separator: block.separator.to_vec(),
        }
    });
    Description {
        uuid: reader.uuid(),
        file_length: reader.file_len(),
        data_bytes: reader.data_bytes(),
        footer_checksum: reader.footer_checksum(),
        first_key: p.first_key.clone(),
        last_key: reader.last_key().expect("a last key").to_vec(),
        codec,
        level,
        properties: properties.collect(),
        sections: reader.sections().iter().map(|s| (s.id, s.offset, s.len)).collect(),
        blocks: blocks.collect(),
    }
}

/// Manifest, logs and contents.
pub fn database(files: &Files) -> Vec<String> {
    let manifest = read_manifest(&files["MANIFEST"]);
    let [segment, log, keyspace, run] = manifest.next;
    let mut lines = vec![format!(
        "{{\"manifest\":\"{}\",\"key_hash_seed\":{},\"log_floor\":{},\"flushed\":{},\
         \"next_segment\":{segment},\"next_log\":{log},\"next_keyspace\":{keyspace},\
         \"next_run\":{run}}}",
        hex(&manifest.uuid),
        manifest.hash_seed,
        manifest.log_floor,
        manifest.flushed
    )];
    lines.extend(manifest.edits.iter().map(|(number, offset, kinds)| {
        format!("{{\"edit\":{number},\"offset\":{offset},\"changes\":{kinds:?}}}")
            .replace(", ", ",")
    }));
    lines.extend(manifest.keyspaces.iter().map(|(id, keyspace)| {
        let clears = format!("{:?}", keyspace.clears).replace(' ', "");
        let name = &keyspace.name;
        let mut line = format!("{{\"keyspace\":{id},\"name\":\"{name}\",\"clears\":{clears}");
        if let Some(operator) = &keyspace.merge_operator {
            line += &format!(",\"merge_operator\":\"{operator}\"");
        }
        if let Some(ttl) = keyspace.default_ttl {
            line += &format!(",\"default_ttl\":{ttl}");
        }
        line + "}"
    }));
    for (id, keyspace) in &manifest.keyspaces {
        lines.extend(keyspace.range_tombstones.iter().map(|(seqno, (start, end))| {
            format!(
                "{{\"range_tombstone\":{seqno},\"keyspace\":{id},\"start\":\"{}\",\"end\":\"{}\"}}",
                show_key(start),
                show_key(end)
            )
        }));
    }
    lines.extend(manifest.segments.iter().map(|(id, s)| {
        format!(
            "{{\"segment\":{id},\"keyspace\":{},\"level\":{},\"run\":{},\"file_length\":{},\
             \"checksum\":\"{:016x}\",\"entries\":{},\"tombstones\":{},\"smallest\":{},\
             \"largest\":{},\"first_key\":\"{}\",\"last_key\":\"{}\"}}",
            s.keyspace,
            s.level,
            s.run,
            s.file_length,
            s.checksum,
            s.entries,
            s.tombstones,
            s.smallest,
            s.largest,
            show_key(&s.first_key),
            show_key(&s.last_key)
        )
    }));
    for log in database::chain(files, manifest.log_floor) {
        lines.push(format!(
            "{{\"log\":{},\"predecessor\":{},\"predecessor_end\":{},\"seqno_before\":{},\
             \"end\":{},\"last_seqno\":{},\"torn\":{}}}",
            log.id, log.predecessor, log.predecessor_end, log.before, log.end, log.last, log.torn
        ));
        for record in &log.records {
            let durable = record.durable.map_or("null".into(), |at| at.to_string());
            lines.push(format!(
                "{{\"record\":{},\"kind\":{},\"seqno\":{},\"durable\":{durable}}}",
                record.offset, record.kind, record.seqno
            ));
            let mut seqno = record.seqno;
            for (i, batch) in record.batches.iter().enumerate() {
                for op in batch {
                    lines.push(format!(
                        "{{\"seqno\":{seqno},\"batch\":{i},\"kind\":{},\"keyspace\":{},\
                         \"key\":\"{}\",{}{}}}",
                        op.kind,
                        op.keyspace,
                        show_key(&op.key),
                        show_expiry(op.expiry),
                        show_value(&op.value)
                    ));
                    seqno += 1;
                }
            }
        }
    }
    lines.extend(database::contents(files, READ_AT_MS).iter().map(|((keyspace, key), value)| {
        format!("{{\"in\":\"{keyspace}\",\"key\":\"{}\",{}}}", show_key(key), show_value(value))
    }));
    lines
}
