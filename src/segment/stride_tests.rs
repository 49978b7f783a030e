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
