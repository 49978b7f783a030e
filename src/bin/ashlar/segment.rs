//! `ashlar segment`: how one segment file is built.

use crate::args::Segment;
use crate::bytes::{escape, to_hex};
use crate::failure::Failure;
use crate::output::{Output, count, human_bytes, insert_bytes};
use ashlardb::{BlockInfo, SegmentReader};
use serde_json::{Map, Value, json};

pub fn run(args: &Segment, json: bool) -> Result<(), Failure> {
    let segment = SegmentReader::open(&args.file)?;
    let mut output = Output::new();
    let damaged = if json {
        document(args, &segment, &mut output)?
    } else {
        text(args, &segment, &mut output)?
    };
    output.finish()?;
    if damaged == 0 {
        return Ok(());
    }
    let blocks = count(damaged, "damaged block");
    Err(Failure::Data(format!("{blocks}; `ashlar verify` tells which keys are affected")))
}

fn codec_name(codec: u8) -> String {
    match codec {
        0 => "none".into(),
        1 => "lz4".into(),
        2 => "zstd".into(),
        other => other.to_string(),
    }
}

/// Gives the number of damaged blocks met.
fn document(args: &Segment, segment: &SegmentReader, output: &mut Output) -> Result<u64, Failure> {
    let properties = segment.properties();
    let mut document = Map::new();
    let mut insert = |name: &str, value: Value| document.insert(name.to_owned(), value);
    insert("uuid", to_hex(&segment.uuid()).into());
    insert("file_bytes", segment.file_len().into());
    insert("data_bytes", segment.data_bytes().into());
    insert("padding_ratio", segment.padding_ratio().into());
    insert("created_ms", properties.created_ms.into());
    insert("keyspace_id", properties.keyspace.map(|id| id.0).into());
    insert("hash_seed", properties.hash_seed.into());
    insert("entries", properties.entries.into());
    insert("distinct_keys", properties.distinct_keys.into());
    insert("tombstones", properties.tombstones.into());
    insert("merge_operands", properties.merge_operands.into());
    insert("range_tombstones", properties.range_tombstones.into());
    insert("blocks", properties.blocks.into());
    insert("smallest_seqno", properties.smallest_seqno.0.into());
    insert("largest_seqno", properties.largest_seqno.0.into());
    insert("numbered_from", properties.numbered_from.0.into());
    insert("compression", segment.compression()?.to_string().into());
    insert("raw_bytes", properties.raw_bytes.into());
    insert("stored_bytes", properties.stored_bytes.into());
    let values = properties
        .value_segments
        .iter()
        .map(|used| json!({ "id": used.id.0, "values": used.values, "bytes": used.bytes }));
    insert("value_segments", values.collect());
    let sections = segment.sections().into_iter().map(|section| {
        json!({
            "id": section.id,
            "name": section.name,
            "offset": section.offset,
            "bytes": section.len,
        })
    });
    insert("sections", sections.collect());
    insert_bytes(&mut document, "first_key", &properties.first_key);
    insert_bytes(&mut document, "last_key", &segment.last_key()?);
    let mut damaged = 0;
    if args.blocks || args.index {
        let list = segment.blocks().map(|block| match block {
            Ok(block) => block_json(args, &block),
            Err(error) => {
                damaged += 1;
                json!({ "error": error.to_string() })
            }
        });
        document.insert("block_list".into(), list.collect());
    }
    output.line(Value::Object(document))?;
    Ok(damaged)
}

fn block_json(args: &Segment, block: &BlockInfo) -> Value {
    let mut object = Map::new();
    let mut insert = |name: &str, value: Value| object.insert(name.to_owned(), value);
    insert("number", block.number.into());
    insert("offset", block.offset.into());
    if args.blocks {
        insert("pages", block.pages.into());
        insert("entries", block.entries.into());
        insert("stored_bytes", block.stored.into());
        insert("raw_bytes", block.raw.into());
        insert("padding_bytes", block.padding.into());
        insert("codec", codec_name(block.codec).into());
    }
    if args.index {
        insert_bytes(&mut object, "first_key", &block.first_key);
        insert_bytes(&mut object, "last_key", &block.last_key);
        insert_bytes(&mut object, "separator", &block.separator);
    }
    Value::Object(object)
}

/// Gives the number of damaged blocks met.
fn text(args: &Segment, segment: &SegmentReader, output: &mut Output) -> Result<u64, Failure> {
    let properties = segment.properties();
    let mut field = |name: &str, value: String| output.line(format_args!("{name:<17} {value}"));
    field("uuid", to_hex(&segment.uuid()))?;
    field("file", human_bytes(segment.file_len()))?;
    field("data blocks", format!("{}, {}", properties.blocks, human_bytes(segment.data_bytes())))?;
    field("padding", format!("{:.1} % of the data blocks", segment.padding_ratio() * 100.0))?;
    field(
        "entries",
        format!(
            "{} of {}, {} of them tombstones",
            properties.entries,
            count(properties.distinct_keys, "key"),
            properties.tombstones
        ),
    )?;
    field("compression", segment.compression()?.to_string())?;
    field("keys and values", human_bytes(properties.raw_bytes))?;
    field("stored in", human_bytes(properties.stored_bytes))?;
    field("first key", escape(&properties.first_key))?;
    field("last key", escape(&segment.last_key()?))?;
    let numbers = match properties.numbered_from.0 {
        0 => format!("{} to {}", properties.smallest_seqno, properties.largest_seqno),
        from => format!("one for all, {from} or above, in the manifest"),
    };
    field("sequence numbers", numbers)?;
    let keyspace = properties.keyspace.map(|id| format!("number {id}"));
    field("keyspace", keyspace.unwrap_or_else(|| "none: a segment by itself".into()))?;
    field("key-hash seed", format!("{:016x}", properties.hash_seed))?;
    field("created", format!("{} ms after the Unix epoch", properties.created_ms))?;

    output.line(format_args!("\n{:<24} {:>12} {:>11}", "section", "offset", "bytes"))?;
    for section in segment.sections() {
        output.line(format_args!(
            "{:<24} {:>12} {:>11}",
            section.name, section.offset, section.len
        ))?;
    }
    if args.blocks || args.index { blocks_text(args, segment, output) } else { Ok(0) }
}

fn blocks_text(
    args: &Segment,
    segment: &SegmentReader,
    output: &mut Output,
) -> Result<u64, Failure> {
    let mut heading = format!("\n{:>6} {:>12}", "block", "offset");
    if args.blocks {
        heading += &format!(
            " {:>5} {:>7} {:>10} {:>10} {:>7} {:<5}",
            "pages", "entries", "stored", "raw", "padding", "codec"
        );
    }
    if args.index {
        heading += " first key .. last key <= separator";
    }
    output.line(heading)?;
    let mut damaged = 0;
    for block in segment.blocks() {
        let block = match block {
            Ok(block) => block,
            Err(error) => {
                damaged += 1;
                output.line(error)?;
                continue;
            }
        };
        let mut line = format!("{:>6} {:>12}", block.number, block.offset);
        if args.blocks {
            line += &format!(
                " {:>5} {:>7} {:>10} {:>10} {:>7} {:<5}",
                block.pages,
                block.entries,
                block.stored,
                block.raw,
                block.padding,
                codec_name(block.codec)
            );
        }
        if args.index {
            let [first, last, separator] =
                [&block.first_key, &block.last_key, &block.separator].map(|key| escape(key));
            line += &format!(" {first} .. {last} <= {separator}");
        }
        output.line(line.trim_end())?;
    }
    Ok(damaged)
}
