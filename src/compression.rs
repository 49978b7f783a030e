//! The codecs of data blocks: none, LZ4, Zstandard.
//!
//! Output is always bounded by a length that the caller knows and has checked, so damaged input
//! cannot make a decoder allocate. A codec whose cargo feature is off is reported as unsupported,
//! never as damage. Called by the segment room; pure functions.
//!
//! Sources: the LZ4 block format and the Zstandard frame format (RFC 8878).

use crate::error::Malformed;

/// How the data blocks of a segment are compressed. A block that does not shrink is stored raw.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Compression {
    /// Stored as they are.
    None,
    /// LZ4 block format: fast both ways. The default where the feature `lz4` is on.
    Lz4,
    /// Zstandard at the given level (1 to 19 are usual; 3 is a good start). Needs feature `zstd`.
    Zstd(i32),
}

impl std::fmt::Display for Compression {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Compression::None => f.write_str("none"),
            Compression::Lz4 => f.write_str("lz4"),
            Compression::Zstd(level) => write!(f, "zstd, level {level}"),
        }
    }
}

impl Default for Compression {
    fn default() -> Self {
        if cfg!(feature = "lz4") { Compression::Lz4 } else { Compression::None }
    }
}

/// The number of a codec on disk (FORMAT.md, "Codecs").
pub(crate) const CODEC_NONE: u8 = 0;
pub(crate) const CODEC_LZ4: u8 = 1;
pub(crate) const CODEC_ZSTD: u8 = 2;

impl Compression {
    /// The codec with this number on disk, at a level, if there is one.
    pub(crate) fn from_codec(codec: u8, level: i32) -> Option<Self> {
        match codec {
            CODEC_NONE => Some(Compression::None),
            CODEC_LZ4 => Some(Compression::Lz4),
            CODEC_ZSTD => Some(Compression::Zstd(level)),
            _ => None,
        }
    }

    /// The codec's number on disk.
    pub(crate) fn codec(self) -> u8 {
        match self {
            Compression::None => CODEC_NONE,
            Compression::Lz4 => CODEC_LZ4,
            Compression::Zstd(_) => CODEC_ZSTD,
        }
    }

    /// Whether this build can write and read it; otherwise the feature that would be needed.
    pub(crate) fn available(self) -> std::result::Result<(), &'static str> {
        match self {
            Compression::None => Ok(()),
            Compression::Lz4 if cfg!(feature = "lz4") => Ok(()),
            Compression::Zstd(_) if cfg!(feature = "zstd") => Ok(()),
            Compression::Lz4 => Err("this build lacks the feature `lz4`"),
            Compression::Zstd(_) => Err("this build lacks the feature `zstd`"),
        }
    }
}

/// Compresses block after block, keeping the codec's working memory between them.
pub(crate) struct Compressor {
    compression: Compression,
    #[cfg(feature = "zstd")]
    zstd: Option<zstd::bulk::Compressor<'static>>,
}

impl std::fmt::Debug for Compressor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Compressor").field("compression", &self.compression).finish()
    }
}

impl Compressor {
    /// A compressor for blocks of this kind.
    pub(crate) fn new(compression: Compression) -> std::result::Result<Self, &'static str> {
        compression.available()?;
        Ok(Compressor {
            compression,
            #[cfg(feature = "zstd")]
            zstd: match compression {
                Compression::Zstd(level) => Some(
                    zstd::bulk::Compressor::new(level)
                        .map_err(|_| "the Zstandard level is not accepted")?,
                ),
                _ => None,
            },
        })
    }

    /// Compresses `raw` into `out` (cleared first). `false` if the codec is none or failed, or the
    /// result would not be shorter: then the block is to be stored raw.
    pub(crate) fn compress(&mut self, raw: &[u8], out: &mut Vec<u8>) -> bool {
        out.clear();
        if raw.is_empty() {
            return false;
        }
        match self.compression {
            Compression::None => false,
            #[cfg(feature = "lz4")]
            Compression::Lz4 => {
                out.resize(lz4_flex::block::get_maximum_output_size(raw.len()), 0);
                let Ok(n) = lz4_flex::block::compress_into(raw, out) else { return false };
                out.truncate(n);
                n < raw.len()
            }
            #[cfg(feature = "zstd")]
            Compression::Zstd(_) => {
                let Some(zstd) = self.zstd.as_mut() else { return false };
                out.resize(zstd::zstd_safe::compress_bound(raw.len()), 0);
                let Ok(n) = zstd.compress_to_buffer(raw, out.as_mut_slice()) else { return false };
                out.truncate(n);
                n < raw.len()
            }
            #[allow(unreachable_patterns)]
            _ => false,
        }
    }
}

/// Decompresses `stored` into `out`, which has exactly the recorded raw length.
pub(crate) fn decompress(codec: u8, stored: &[u8], out: &mut [u8]) -> Result<(), Malformed> {
    match codec {
        CODEC_NONE => {
            if stored.len() != out.len() {
                return Err(Malformed::Damaged("stored and raw length differ in a raw block"));
            }
            out.copy_from_slice(stored);
            Ok(())
        }
        #[cfg(feature = "lz4")]
        CODEC_LZ4 => match lz4_flex::block::decompress_into(stored, out) {
            Ok(n) if n == out.len() => Ok(()),
            _ => Err(Malformed::Damaged("its LZ4 data does not decompress")),
        },
        #[cfg(feature = "zstd")]
        CODEC_ZSTD => match zstd_into(stored, out) {
            Ok(n) if n == out.len() => Ok(()),
            _ => Err(Malformed::Damaged("its Zstandard data does not decompress")),
        },
        #[cfg(not(feature = "lz4"))]
        CODEC_LZ4 => Err(Malformed::Unsupported("LZ4 needs a build with the feature `lz4`")),
        #[cfg(not(feature = "zstd"))]
        CODEC_ZSTD => {
            Err(Malformed::Unsupported("Zstandard needs a build with the feature `zstd`"))
        }
        _ => {
            Err(Malformed::Unsupported("the block's codec is unknown; a newer library may know it"))
        }
    }
}

/// Decompresses a Zstandard frame with the thread's own decoder: making one costs more than
/// decoding a block does.
#[cfg(feature = "zstd")]
fn zstd_into(stored: &[u8], out: &mut [u8]) -> std::io::Result<usize> {
    use std::cell::RefCell;
    thread_local! {
        static DECODER: RefCell<Option<zstd::bulk::Decompressor<'static>>> =
            const { RefCell::new(None) };
    }
    DECODER.with_borrow_mut(|decoder| {
        if decoder.is_none() {
            *decoder = Some(zstd::bulk::Decompressor::new()?);
        }
        match decoder {
            Some(decoder) => decoder.decompress_to_buffer(stored, out),
            None => zstd::bulk::decompress_to_buffer(stored, out),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Vec<Compression> {
        [Compression::None, Compression::Lz4, Compression::Zstd(3)]
            .into_iter()
            .filter(|c| c.available().is_ok())
            .collect()
    }

    #[test]
    fn blocks_round_trip_and_incompressible_ones_are_declined() {
        let raw: Vec<u8> = (0..10_000u32).flat_map(|n| (n / 7).to_le_bytes()).collect();
        for compression in all() {
            let mut out = Vec::new();
            let shrank = Compressor::new(compression).unwrap().compress(&raw, &mut out);
            assert_eq!(shrank, compression != Compression::None);
            if shrank {
                let mut back = vec![0; raw.len()];
                decompress(compression.codec(), &out, &mut back).unwrap();
                assert_eq!(back, raw);
                let mut short = vec![0; raw.len() - 1];
                assert!(decompress(compression.codec(), &out, &mut short).is_err());
                let mut long = vec![0; raw.len() + 1];
                assert!(decompress(compression.codec(), &out, &mut long).is_err());
            }
            assert!(!Compressor::new(compression).unwrap().compress(b"xyz", &mut out));
        }
        assert!(matches!(decompress(99, b"", &mut []), Err(Malformed::Unsupported(_))));
    }
}
