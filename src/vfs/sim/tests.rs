use super::*;

const DIR: &str = "/d";

fn sim() -> SimVfs {
    let vfs = SimVfs::new(1);
    vfs.create_dir_all(Path::new(DIR)).unwrap();
    vfs.sync_dir(Path::new("/")).unwrap();
    vfs
}

fn path(name: &str) -> PathBuf {
    Path::new(DIR).join(name)
}

fn read(vfs: &dyn Vfs, name: &str) -> Option<Vec<u8>> {
    let file = vfs.open(&path(name), OpenMode::Read).ok()?;
    let mut bytes = vec![0; file.len().unwrap() as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    Some(bytes)
}

/// What the crashes of many seeds leave in a file, sorted.
fn outcomes(vfs: &SimVfs, name: &str) -> Vec<Option<Vec<u8>>> {
    let mut all: Vec<_> = (0..4000).map(|seed| read(&vfs.power_loss(seed), name)).collect();
    all.sort();
    all.dedup();
    all
}

#[test]
fn a_name_is_durable_once_its_directory_is_synced_and_bytes_once_the_file_is() {
    let vfs = sim();
    let file = vfs.open(&path("a"), OpenMode::CreateNew).unwrap();
    file.write_all_at(b"abc", 0).unwrap();
    file.sync_data().unwrap();
    assert_eq!(outcomes(&vfs, "a"), [None, Some(b"abc".to_vec())]);
    vfs.sync_dir(Path::new(DIR)).unwrap();
    assert_eq!(outcomes(&vfs, "a"), [Some(b"abc".to_vec())]);
    file.write_all_at(b"xyz", 1).unwrap();
    let seen = outcomes(&vfs, "a");
    let whole: [&[u8]; 4] = [b"abc", b"axy", b"axyz", b"abc\0"];
    assert!(whole.iter().all(|w| seen.contains(&Some(w.to_vec()))), "{seen:?}");
    assert_eq!(seen.len(), 4);
    assert_eq!(read(&vfs.process_death(), "a").unwrap(), b"axyz");
}

#[test]
fn sectors_are_whole_and_independent_and_keep_their_order() {
    let vfs = sim();
    let file = vfs.open(&path("a"), OpenMode::CreateNew).unwrap();
    file.write_all_at(&[1; 1024], 0).unwrap();
    file.sync_data().unwrap();
    vfs.sync_dir(Path::new(DIR)).unwrap();
    file.write_all_at(&[2; 1024], 0).unwrap();
    file.write_all_at(&[3; 512], 512).unwrap();
    let seen: Vec<(u8, u8)> = outcomes(&vfs, "a")
        .into_iter()
        .map(|bytes| {
            let bytes = bytes.unwrap();
            assert!(bytes[..512].iter().all(|b| *b == bytes[0]));
            assert!(bytes[512..].iter().all(|b| *b == bytes[512]));
            (bytes[0], bytes[512])
        })
        .collect();
    assert_eq!(seen, [(1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (2, 3)]);
}

#[test]
fn a_cut_takes_bytes_that_do_not_come_back() {
    let vfs = sim();
    let file = vfs.open(&path("a"), OpenMode::CreateNew).unwrap();
    file.write_all_at(b"abcd", 0).unwrap();
    file.sync_data().unwrap();
    vfs.sync_dir(Path::new(DIR)).unwrap();
    file.set_len(2).unwrap();
    assert_eq!(
        outcomes(&vfs, "a"),
        [Some(b"ab".to_vec()), Some(b"ab\0\0".to_vec()), Some(b"abcd".to_vec())]
    );
    file.sync_data().unwrap();
    file.set_len(4).unwrap();
    file.sync_data().unwrap();
    assert_eq!(outcomes(&vfs, "a"), [Some(b"ab\0\0".to_vec())]);
}

#[test]
fn renames_and_removals_happen_or_not() {
    let vfs = sim();
    for (name, bytes) in [("a", b"1"), ("b", b"2")] {
        let file = vfs.open(&path(name), OpenMode::CreateNew).unwrap();
        file.write_all_at(bytes, 0).unwrap();
        file.sync_data().unwrap();
    }
    vfs.sync_dir(Path::new(DIR)).unwrap();
    vfs.rename(&path("a"), &path("b")).unwrap();
    assert_eq!(outcomes(&vfs, "b"), [Some(b"1".to_vec()), Some(b"2".to_vec())]);
    assert_eq!(outcomes(&vfs, "a"), [None, Some(b"1".to_vec())]);
    vfs.sync_dir(Path::new(DIR)).unwrap();
    assert_eq!(outcomes(&vfs, "a"), [None]);
    vfs.remove_file(&path("b")).unwrap();
    assert_eq!(outcomes(&vfs, "b"), [None, Some(b"1".to_vec())]);
}

#[test]
fn what_a_failed_sync_forgot_no_later_sync_brings_back() {
    let vfs = sim();
    let file = vfs.open(&path("a"), OpenMode::CreateNew).unwrap();
    vfs.sync_dir(Path::new(DIR)).unwrap();
    let mut lost = 0;
    for round in 0..64 {
        file.write_all_at(&[1; 600], 600 * round).unwrap();
        vfs.fail(0, false, Failure::Refused);
        file.sync_data().unwrap_err();
    }
    file.write_all_at(&[1], 600 * 64).unwrap();
    file.sync_data().unwrap();
    let left = outcomes(&vfs, "a");
    assert_eq!(left.len(), 1, "all is durable or lost");
    lost += left[0].as_ref().unwrap().iter().filter(|b| **b == 0).count();
    assert!(lost > 600, "{lost}");
    assert_eq!(read(&vfs, "a").unwrap(), [1; 600 * 64 + 1], "readers see what was written");
}

#[test]
fn the_chosen_call_fails_as_told_and_a_full_disk_has_room_again() {
    let vfs = sim();
    let file = vfs.open(&path("a"), OpenMode::CreateNew).unwrap();
    vfs.fail(1, false, Failure::Half);
    file.write_all_at(b"abcd", 0).unwrap();
    assert!(file.write_all_at(b"efgh", 4).is_err());
    assert_eq!(read(&vfs, "a").unwrap(), b"abcdef");
    vfs.fail(0, true, Failure::NoSpace);
    assert_eq!(file.write_all_at(b"x", 0).unwrap_err().kind(), io::ErrorKind::StorageFull);
    vfs.remove_file(&path("a")).unwrap();
    assert!(vfs.open(&path("b"), OpenMode::CreateNew).is_err());
    vfs.heal();
    vfs.set_capacity(10);
    let file = vfs.open(&path("b"), OpenMode::CreateNew).unwrap();
    file.write_all_at(&[0; 8], 0).unwrap();
    assert_eq!(file.write_all_at(&[0; 8], 8).unwrap_err().kind(), io::ErrorKind::StorageFull);
    vfs.set_capacity(16);
    file.write_all_at(&[0; 8], 8).unwrap();
    vfs.fail_any(0, false, Failure::FlippedRead);
    let mut buf = [0; 16];
    file.read_exact_at(&mut buf, 0).unwrap();
    assert_eq!(buf.iter().map(|b| b.count_ones()).sum::<u32>(), 1);
    file.read_exact_at(&mut buf, 0).unwrap();
    assert_eq!(buf, [0; 16]);
}

#[test]
fn the_hook_sees_each_change_before_it_is_made() {
    let vfs = sim();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&seen);
    vfs.before_each_change(move |vfs, call| {
        let names = vfs.process_death().read_dir(Path::new(DIR)).unwrap().len();
        log.lock().push((call, names));
    });
    let file = vfs.open(&path("a"), OpenMode::CreateNew).unwrap();
    file.write_all_at(b"a", 0).unwrap();
    file.sync_data().unwrap();
    vfs.forget_hook();
    vfs.sync_dir(Path::new(DIR)).unwrap();
    assert_eq!(*seen.lock(), [(Call::Create, 0), (Call::Write, 1), (Call::Sync, 1)]);
}

#[test]
fn a_second_name_is_durable_once_its_directory_is_synced_and_stands_for_the_same_bytes() {
    let vfs = sim();
    let file = vfs.open(&path("a"), OpenMode::CreateNew).unwrap();
    file.write_all_at(b"abc", 0).unwrap();
    file.sync_data().unwrap();
    vfs.sync_dir(Path::new(DIR)).unwrap();
    vfs.hard_link(&path("a"), &path("b")).unwrap();
    assert_eq!(vfs.used(), 3);
    assert_eq!(outcomes(&vfs, "b"), [None, Some(b"abc".to_vec())]);
    vfs.sync_dir(Path::new(DIR)).unwrap();
    assert_eq!(outcomes(&vfs, "b"), [Some(b"abc".to_vec())]);
    file.write_all_at(&[7; 2000], 0).unwrap();
    for seed in 0..200 {
        let image = vfs.power_loss(seed);
        assert_eq!(read(&image, "a"), read(&image, "b"));
    }
    vfs.remove_file(&path("a")).unwrap();
    assert_eq!(read(&vfs, "b"), Some(vec![7; 2000]));
    let error = vfs.hard_link(&path("b"), &path("b")).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
    assert!(vfs.hard_link(&path("a"), &path("c")).is_err(), "it is gone");
    vfs.fail(0, false, Failure::NoSpace);
    assert!(vfs.hard_link(&path("b"), &path("c")).is_err());
    vfs.refuse_links();
    let error = vfs.hard_link(&path("b"), &path("c")).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::CrossesDevices);
    assert_eq!(read(&vfs, "c"), None);
}
