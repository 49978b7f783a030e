//! The ready-made operators, and how operators are guarded.

use super::*;

#[test]
fn the_ready_made_ones_do_what_they_say_and_combine_to_the_same() {
    let number = |n: i64| n.to_le_bytes().to_vec();
    let set = |elements: &[&str]| SetUnion::encode(elements);
    type Case<'a> = (&'a dyn MergeOperator, [Vec<u8>; 4], Vec<u8>);
    let cases: [Case<'_>; 4] = [
        (&Append, [b"a".to_vec(), b"".to_vec(), b"bc".to_vec(), b"d".to_vec()], b"abcd".to_vec()),
        (&AddI64, [number(i64::MAX), number(1), number(-7), number(2)], number(i64::MAX - 4)),
        (&Max, [b"b".to_vec(), b"ba".to_vec(), b"a".to_vec(), b"".to_vec()], b"ba".to_vec()),
        (
            &SetUnion,
            [set(&["x", ""]), set(&[]), set(&["y", "x"]), set(&["a"])],
            set(&["", "a", "x", "y"]),
        ),
    ];
    for (operator, [value, operands @ ..], expected) in cases {
        let name = operator.name();
        assert_eq!(ready_made(name).unwrap().name(), name);
        let operands: Vec<&[u8]> = operands.iter().map(|o| &o[..]).collect();
        let whole = merge(operator, b"k", Some(&value), &operands, MAX_VALUE_LEN).unwrap();
        assert_eq!(whole, Some(expected.clone()), "{name}");
        for (from, to) in [(0, 2), (1, 3), (0, 3)] {
            let one = combine(operator, b"k", &operands[from..to], MAX_VALUE_LEN).unwrap().unwrap();
            let mut fewer = operands[..from].to_vec();
            fewer.push(&one);
            fewer.extend(&operands[to..]);
            let merged = merge(operator, b"k", Some(&value), &fewer, MAX_VALUE_LEN).unwrap();
            assert_eq!(merged, Some(expected.clone()), "{name}: {from}..{to} combined");
        }
        for at in 0..=operands.len() {
            let (first, rest) = operands.split_at(at);
            for existing in [None, Some(&value[..])] {
                let whole = merge(operator, b"k", existing, &operands, MAX_VALUE_LEN).unwrap();
                let part = merge(operator, b"k", existing, first, MAX_VALUE_LEN).unwrap();
                let both = merge(operator, b"k", part.as_deref(), rest, MAX_VALUE_LEN).unwrap();
                assert_eq!(both, whole, "{name}: divided at {at}");
            }
        }
        let all = combine(operator, b"k", &operands, MAX_VALUE_LEN).unwrap();
        let fresh = merge(operator, b"k", None, &operands, MAX_VALUE_LEN).unwrap();
        assert_eq!(
            merge(operator, b"k", None, &[&all.unwrap()], MAX_VALUE_LEN).unwrap(),
            fresh,
            "{name}"
        );
    }
}

#[test]
fn what_is_no_number_and_no_set_is_refused() {
    let set = SetUnion::encode(["b", "c"]);
    let mut swapped = SetUnion::encode(["c"]);
    swapped.extend(SetUnion::encode(["b"]));
    let cases: [(&dyn MergeOperator, Vec<u8>); 4] = [
        (&AddI64, vec![1; 7]),
        (&SetUnion, set[..set.len() - 1].to_vec()),
        (&SetUnion, vec![1, 0, 0]),
        (&SetUnion, swapped),
    ];
    for (operator, wrong) in cases {
        let refused = check(operator, b"k", &wrong);
        assert!(matches!(refused, Err(Error::MergeFailed { .. })), "{refused:?}");
        assert!(merge(operator, b"k", Some(&wrong), &[], MAX_VALUE_LEN).is_err());
    }
    assert!(check(&AddI64, b"k", &[0; 8]).is_ok() && check(&SetUnion, b"k", &set).is_ok());
}

#[test]
fn a_panic_is_an_error() {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let operator = MergeFn::associative("angry", |_, _, operands| {
        panic!("{} operands are too many", operands.len())
    });
    let outcome = merge(&operator, b"k", None, &[b"1", b"2"], MAX_VALUE_LEN);
    let combined = combine(&operator, b"k", &[b"1", b"2"], MAX_VALUE_LEN);
    std::panic::set_hook(hook);
    for error in [outcome.unwrap_err(), combined.unwrap_err()] {
        let text = error.to_string();
        assert!(text.contains("angry") && text.contains("2 operands are too many"), "{text}");
    }
}

#[test]
fn a_function_that_is_not_associative_combines_nothing() {
    let last = MergeFn::new("last", |_, _, operands| operands.last().map(|o| o.to_vec()));
    assert_eq!(combine(&last, b"k", &[b"1", b"2"], MAX_VALUE_LEN).unwrap(), None);
    assert_eq!(
        merge(&last, b"k", Some(b"0"), &[b"1", b"2"], MAX_VALUE_LEN).unwrap(),
        Some(b"2".to_vec())
    );
}

#[test]
#[cfg(target_pointer_width = "64")]
#[cfg_attr(miri, ignore)] // It asks for four gibibytes of zeros, none of which is ever touched.
fn a_result_leaves_room_for_its_expiry() {
    for (more, fits, fits_with_expiry) in [(0, true, true), (1, true, false), (9, false, false)] {
        let zeros = MergeFn::associative("zeros", move |_, _, _| {
            Some(vec![0; MAX_VALUE_LEN - EXPIRY_LEN + more])
        });
        let fit = |limit| {
            let merged = merge(&zeros, b"k", None, &[b"1", b"2"], limit).is_ok();
            assert_eq!(combine(&zeros, b"k", &[b"1", b"2"], limit).is_ok(), merged);
            merged
        };
        assert_eq!(fit(longest_result(false)), fits, "{more}");
        assert_eq!(fit(longest_result(true)), fits_with_expiry, "{more}");
    }
}
