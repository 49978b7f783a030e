//! Strides of the cursor: where they lead, and that they can be taken back.

use super::tests::{Random, Version, codecs, mixed, open, options, plain, write};
use super::{CursorOptions, SegmentCursor};
use crate::cursor::{Cursor, Seek, Shown};

fn here(cursor: &SegmentCursor) -> Version {
    let Shown { key, seqno, kind } = cursor.shown();
    assert_eq!((key, seqno, kind), (cursor.key(), cursor.seqno(), cursor.kind()));
    assert_eq!(cursor.lend(), (cursor.key(), cursor.value_ref()));
    (key.to_vec(), seqno.0, kind, cursor.lend().1.to_vec())
}

#[test]
fn a_turn_at_the_edge_of_a_block_passes_over_nothing() {
    let mut edges = 0;
    for compression in codecs() {
        for versions in [mixed(&mut Random(5), 1500), plain(1500)] {
            let (env, _) = write(options(compression), &versions);
            let reader = open(&env);
            let mut ends = Vec::new();
            for block in reader.blocks() {
                ends.push(ends.last().copied().unwrap_or(0) + block.unwrap().entries as usize);
            }
            assert_eq!(ends.pop(), Some(versions.len()));
            edges += ends.len();
            let mut cursor = reader.cursor(CursorOptions::default());
            for end in ends {
                // Over the edge and back so many entries, beginning on either side, both ways.
                for far in 1..4 {
                    let (low, high) =
                        (end.saturating_sub(far), (end + far).min(versions.len() - 1));
                    for from_below in [true, false] {
                        let mut at = if from_below { low } else { high };
                        cursor.seek(Seek::AtOrAfter(&versions[at].0)).unwrap();
                        let first = versions.partition_point(|v| v.0 < versions[at].0);
                        (first..at).for_each(|_| cursor.next().unwrap());
                        let legs = if from_below { [high, low, high] } else { [low, high, low] };
                        for leg in legs {
                            while at != leg {
                                assert_eq!(here(&cursor), versions[at]);
                                let forward = at < leg;
                                at = if forward { at + 1 } else { at - 1 };
                                if forward {
                                    cursor.next().unwrap();
                                } else {
                                    cursor.prev().unwrap();
                                }
                            }
                        }
                        assert_eq!(here(&cursor), versions[at]);
                    }
                }
            }
        }
    }
    assert!(edges > 20, "{edges}");
}

#[test]
fn a_stride_leads_to_the_next_key_and_can_be_taken_back() {
    for compression in codecs() {
        for versions in [mixed(&mut Random(3), 700), plain(700)] {
            let (env, _) = write(options(compression), &versions);
            let mut cursor = open(&env).cursor(CursorOptions::default());
            let is_newest = |i: usize| i == 0 || versions[i - 1].0 != versions[i].0;
            let mut random = Random(11);
            let (mut at, mut strides) = (0, 0);
            cursor.seek(Seek::First).unwrap();
            for _ in 0..20_000 {
                assert_eq!(here(&cursor), versions[at]);
                let forward = random.below(2) == 0;
                let there = if forward { at.checked_add(1) } else { at.checked_sub(1) };
                let there = there.filter(|there| *there < versions.len());
                if let Some(shown) = cursor.stride(forward) {
                    let shown = (shown.key.to_vec(), shown.seqno, shown.kind);
                    assert_eq!(shown, (cursor.key().to_vec(), cursor.seqno(), cursor.kind()));
                    let there = there.expect("there is such an entry");
                    assert!(is_newest(there), "a stride leads to the newest version of a key");
                    assert_eq!(here(&cursor), versions[there]);
                    strides += 1;
                    if random.below(2) == 0 {
                        cursor.unstride(forward);
                    } else {
                        at = there;
                    }
                } else if let Some(there) = there {
                    assert_eq!(here(&cursor), versions[at]);
                    if forward {
                        cursor.next().unwrap()
                    } else {
                        cursor.prev().unwrap()
                    }
                    at = there;
                }
            }
            assert!(strides > 5_000, "{strides}");
        }
    }
}
