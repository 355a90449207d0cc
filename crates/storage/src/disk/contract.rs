//! What every [`Disk`] promises, run against each of them.

use super::*;
use std::io::Read as _;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

fn on_each_disk(test: impl Fn(&dyn Disk, &Path)) {
    let dir = tempfile::tempdir().unwrap();
    test(&RealDisk, dir.path());
    let mem = MemDisk::new();
    mem.create_dir_all(Path::new("/mem")).unwrap();
    test(&mem, Path::new("/mem"));
    mem.remove_dir_all(Path::new("/mem")).unwrap();
    mem.create_dir_all(Path::new("/mem")).unwrap();
    test(&OverlayDisk::over(Arc::new(mem)), Path::new("/mem"));
}

fn content(disk: &dyn Disk, path: &Path) -> Vec<u8> {
    read_small_file(disk, path, 1 << 20).unwrap().unwrap()
}

#[test]
fn bytes_read_back_where_they_were_written() {
    on_each_disk(|disk, dir| {
        let file = disk.open(&dir.join("a"), OpenMode::Create).unwrap();
        write_all_at(&*file, &mut [IoSlice::new(b"hello "), IoSlice::new(b""), IoSlice::new(b"world")], 3).unwrap();
        assert_eq!(file.size().unwrap(), 14);
        let mut all = [9u8; 20];
        assert_eq!(file.read_at(&mut all, 0).unwrap(), 14);
        assert_eq!(&all[..14], b"\0\0\0hello world");
        assert_eq!(file.read_at(&mut all, 14).unwrap(), 0);
        assert_eq!(file.read_at(&mut all, 1 << 40).unwrap(), 0);
        let short = read_exact_at(&*file, &mut all, 0).unwrap_err();
        assert_eq!(short.kind(), io::ErrorKind::UnexpectedEof);
        file.sync_data().unwrap();
    });
}

#[test]
fn bytes_are_sent_to_a_socket_until_it_is_full_or_the_file_ends() {
    on_each_disk(|disk, dir| {
        let file = disk.open(&dir.join("a"), OpenMode::Create).unwrap();
        let content: Vec<u8> = (0..1_000_000_u32).flat_map(u32::to_be_bytes).collect();
        write_all_at(&*file, &mut [IoSlice::new(&content)], 0).unwrap();
        let (from, mut to) = UnixStream::pair().unwrap();
        from.set_nonblocking(true).unwrap();
        let send = |position: usize, len| file.send_to(from.as_fd(), position as u64, len);
        if !file.can_send() {
            assert_eq!(send(0, 1).unwrap_err().kind(), io::ErrorKind::Unsupported);
            return;
        }
        let (mut sent, mut received) = (5, Vec::new());
        while sent < 3_000_005 {
            match send(sent, 3_000_005 - sent) {
                Ok(Sent::Bytes(count)) => sent += count,
                Ok(Sent::NotCached) => {
                    assert_eq!(file.read_at(&mut vec![0; content.len()], 0).unwrap(), content.len());
                }
                Err(e) => {
                    assert_eq!(e.kind(), io::ErrorKind::WouldBlock);
                    let mut taken = vec![0; sent - 5 - received.len()];
                    to.read_exact(&mut taken).unwrap();
                    received.extend(taken);
                }
            }
        }
        drop(from);
        to.read_to_end(&mut received).unwrap();
        assert_eq!(received, content[5..3_000_005]);
        let (from, _to) = UnixStream::pair().unwrap();
        let beyond = file.send_to(from.as_fd(), content.len() as u64, 10).unwrap_err();
        assert_eq!(beyond.kind(), io::ErrorKind::UnexpectedEof);
    });
}

#[test]
fn a_file_tells_when_it_was_last_written() {
    let mem = MemDisk::new();
    mem.set_time(Time(77));
    mem.create_dir_all(Path::new("/mem")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let written = |disk: &dyn Disk, path: &Path| {
        let file = disk.open(path, OpenMode::Create).unwrap();
        write_all_at(&*file, &mut [IoSlice::new(b"a")], 0).unwrap();
        file.modified().unwrap()
    };
    assert_eq!(written(&mem, Path::new("/mem/a")), Time(77));
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_millis();
    let real = u128::from(written(&RealDisk, &dir.path().join("a")).0);
    assert!(real.abs_diff(now) < 60_000, "{real} {now}");
    let overlay = OverlayDisk::over(Arc::new(mem));
    assert_eq!(overlay.open(Path::new("/mem/a"), OpenMode::ReadOnly).unwrap().modified().unwrap(), Time(77));
}

#[test]
fn a_write_of_more_slices_than_one_call_takes_is_whole() {
    on_each_disk(|disk, dir| {
        let file = disk.open(&dir.join("many"), OpenMode::Create).unwrap();
        let bytes: Vec<u8> = (0..=250).cycle().take(3000).collect();
        let mut slices: Vec<IoSlice<'_>> = bytes.chunks(1).map(IoSlice::new).collect();
        write_all_at(&*file, &mut slices, 0).unwrap();
        assert_eq!(content(disk, &dir.join("many")), bytes);
    });
}

#[test]
fn truncation_cuts_and_extends_with_zeros() {
    on_each_disk(|disk, dir| {
        let file = disk.open(&dir.join("t"), OpenMode::Create).unwrap();
        write_all_at(&*file, &mut [IoSlice::new(b"abcdef")], 0).unwrap();
        file.truncate(2).unwrap();
        file.truncate(4).unwrap();
        assert_eq!(content(disk, &dir.join("t")), b"ab\0\0");
        file.preallocate(1000).unwrap();
        assert_eq!(file.size().unwrap(), 4);
    });
}

#[test]
fn open_modes_differ_in_what_they_make_and_keep() {
    on_each_disk(|disk, dir| {
        let path = dir.join("m");
        assert_eq!(disk.open(&path, OpenMode::Existing).unwrap_err().kind(), io::ErrorKind::NotFound);
        let file = disk.open(&path, OpenMode::Create).unwrap();
        write_all_at(&*file, &mut [IoSlice::new(b"x")], 0).unwrap();
        disk.open(&path, OpenMode::Create).unwrap();
        assert_eq!(content(disk, &path), b"x");
        disk.open(&path, OpenMode::Truncate).unwrap();
        assert_eq!(content(disk, &path), b"");
        let nowhere = disk.open(&dir.join("no").join("m"), OpenMode::Create).unwrap_err();
        assert_eq!(nowhere.kind(), io::ErrorKind::NotFound);
    });
}

#[test]
fn names_are_listed_renamed_and_removed() {
    on_each_disk(|disk, dir| {
        disk.create_dir_all(&dir.join("d").join("e")).unwrap();
        disk.create_dir_all(&dir.join("d")).unwrap();
        let file = disk.open(&dir.join("d").join("f"), OpenMode::Create).unwrap();
        write_all_at(&*file, &mut [IoSlice::new(b"f")], 0).unwrap();
        let name = |name: &str, is_dir| DirEntry { name: name.to_owned(), is_dir };
        assert_eq!(disk.list(&dir.join("d")).unwrap(), [name("e", true), name("f", false)]);
        disk.rename(&dir.join("d"), &dir.join("g")).unwrap();
        disk.rename(&dir.join("g").join("f"), &dir.join("g").join("h")).unwrap();
        assert_eq!(disk.list(dir).unwrap(), [name("g", true)]);
        assert_eq!(content(disk, &dir.join("g").join("h")), b"f");
        disk.remove_file(&dir.join("g").join("h")).unwrap();
        let mut still = [0u8; 1];
        assert_eq!(file.read_at(&mut still, 0).unwrap(), 1, "an open file outlives its name");
        assert_eq!(disk.remove_file(&dir.join("h")).unwrap_err().kind(), io::ErrorKind::NotFound);
        disk.remove_dir_all(&dir.join("g")).unwrap();
        assert_eq!(disk.list(dir).unwrap(), []);
        disk.sync_dir(dir).unwrap();
    });
}

#[test]
fn a_file_is_replaced_whole_and_nothing_stays_beside_it() {
    on_each_disk(|disk, dir| {
        let path: PathBuf = dir.join("r");
        for text in ["first", "2"] {
            replace_file(disk, &path, text.as_bytes()).unwrap();
            assert_eq!(content(disk, &path), text.as_bytes());
        }
        assert_eq!(disk.list(dir).unwrap().len(), 1);
        assert!(read_small_file(disk, &dir.join("none"), 1).unwrap().is_none());
        replace_file(disk, &path, b"too large").unwrap();
        assert!(read_small_file(disk, &path, 3).is_err());
    });
}

#[test]
fn a_lock_has_one_holder_until_it_closes_the_file() {
    on_each_disk(|disk, dir| {
        let path = dir.join(".lock");
        let first = disk.open(&path, OpenMode::Create).unwrap();
        let second = disk.open(&path, OpenMode::Create).unwrap();
        assert!(first.try_lock().unwrap());
        assert!(!second.try_lock().unwrap());
        drop(first);
        assert!(second.try_lock().unwrap());
    });
}

#[test]
fn a_replaced_file_is_old_or_new_at_every_cut() {
    // R31: write aside, sync, rename, sync the directory.
    for cut in 0..=14u64 {
        for seed in 0..20 {
            let disk = MemDisk::new();
            disk.create_dir_all(Path::new("/d")).unwrap();
            disk.crash(Crash::KeepAll);
            replace_file(&disk, Path::new("/d/f"), b"old one").unwrap();
            disk.fail(if seed % 2 == 0 { Call::Rename } else { Call::SyncDir }, 0, FaultKind::Eio);
            replace_file(&disk, Path::new("/d/f"), b"the new").unwrap_err();
            disk.crash(if cut == 14 { Crash::Scatter(seed) } else { Crash::TornAt(cut) });
            let now = content(&disk, Path::new("/d/f"));
            assert!(now == b"old one" || now == b"the new", "{now:?}");
            replace_file(&disk, Path::new("/d/f"), b"third").unwrap();
            disk.crash(Crash::LoseUnsynced);
            assert_eq!(content(&disk, Path::new("/d/f")), b"third");
        }
    }
}

#[test]
fn a_crash_keeps_what_was_synced_and_may_lose_the_rest() {
    let disk = MemDisk::new();
    disk.create_dir_all(Path::new("/d")).unwrap();
    disk.crash(Crash::KeepAll);
    let file = disk.open(Path::new("/d/f"), OpenMode::Create).unwrap();
    write_all_at(&*file, &mut [IoSlice::new(b"synced")], 0).unwrap();
    file.sync_data().unwrap();
    disk.sync_dir(Path::new("/d")).unwrap();
    write_all_at(&*file, &mut [IoSlice::new(b"+not")], 6).unwrap();
    assert_eq!(disk.unsynced_bytes(), 4);
    for (how, expected) in [
        (Crash::KeepAll, &b"synced+not"[..]),
        (Crash::LoseUnsynced, b"synced"),
        (Crash::TornAt(0), b"synced"),
        (Crash::TornAt(3), b"synced+no"),
    ] {
        let fork = disk.fork();
        fork.crash(how);
        assert_eq!(content(&fork, Path::new("/d/f")), expected, "{how:?}");
    }
    disk.crash(Crash::KeepAll);
    assert!(file.size().is_err(), "a file opened before the crash is dead");
}

#[test]
fn a_name_that_waits_in_a_directory_goes_with_it_when_that_is_renamed() {
    let disk = MemDisk::new();
    disk.create_dir_all(Path::new("/d/old")).unwrap();
    disk.create_dir_all(Path::new("/d/other")).unwrap();
    disk.crash(Crash::KeepAll);
    let put = |path: &str, text: &[u8]| {
        let file = disk.open(Path::new(path), OpenMode::Create).unwrap();
        write_all_at(&*file, &mut [IoSlice::new(text)], 0).unwrap();
        file.sync_data().unwrap();
    };
    put("/d/old/f", b"of the old one");
    put("/d/other/f", b"of the other");
    disk.sync_dir(Path::new("/d/other")).unwrap();
    disk.rename(Path::new("/d/old"), Path::new("/d/gone")).unwrap();
    disk.rename(Path::new("/d/other"), Path::new("/d/old")).unwrap();
    disk.sync_dir(Path::new("/d")).unwrap();
    for (how, names) in [(Crash::KeepAll, 1), (Crash::LoseUnsynced, 0)] {
        let fork = disk.fork();
        fork.crash(how);
        assert_eq!(content(&fork, Path::new("/d/old/f")), b"of the other", "{how:?}");
        assert_eq!(fork.list(Path::new("/d/gone")).unwrap().len(), names, "{how:?}");
    }
}

#[test]
fn faults_and_a_full_disk_are_told_and_leave_what_was_there() {
    let disk = MemDisk::new();
    disk.create_dir_all(Path::new("/d")).unwrap();
    let file = disk.open(Path::new("/d/f"), OpenMode::Create).unwrap();
    disk.fail(Call::Write, 1, FaultKind::Eio);
    write_all_at(&*file, &mut [IoSlice::new(b"one")], 0).unwrap();
    assert_eq!(write_all_at(&*file, &mut [IoSlice::new(b"two")], 3).unwrap_err().raw_os_error(), Some(5));
    disk.fail(Call::Write, 0, FaultKind::ShortWrite(1));
    write_all_at(&*file, &mut [IoSlice::new(b"two")], 3).unwrap();
    disk.set_capacity(Some(8));
    let full = write_all_at(&*file, &mut [IoSlice::new(b"three")], 6).unwrap_err();
    assert!(is_out_of_space(&full), "{full}");
    assert_eq!(content(&disk, Path::new("/d/f")), b"onetwoth");
}

#[test]
fn what_lies_over_a_disk_shows_its_own_changes_and_leaves_the_disk_as_it_was() {
    let mem = MemDisk::new();
    mem.create_dir_all(Path::new("/d/e")).unwrap();
    let bytes: Vec<u8> = (0..=250).cycle().take(10_000).collect();
    for name in ["/d/a", "/d/b", "/d/e/f"] {
        replace_file(&mem, Path::new(name), &bytes).unwrap();
    }
    let over = OverlayDisk::over(Arc::new(mem.clone()));
    let file = over.open(Path::new("/d/a"), OpenMode::Existing).unwrap();
    write_all_at(&*file, &mut [IoSlice::new(&[255; 5000])], 3000).unwrap();
    file.truncate(7000).unwrap();
    file.truncate(9000).unwrap();
    let expected = [&bytes[..3000], &[255; 4000], &[0; 2000]].concat();
    assert_eq!(content(&over, Path::new("/d/a")), expected);
    over.rename(Path::new("/d/a"), Path::new("/d/b")).unwrap();
    over.rename(Path::new("/d/e"), Path::new("/d/g")).unwrap();
    assert_eq!(content(&over, Path::new("/d/b")), expected);
    assert_eq!(content(&over, Path::new("/d/g/f")), bytes);
    let names =
        |disk: &dyn Disk, dir| disk.list(Path::new(dir)).unwrap().into_iter().map(|e| e.name).collect::<Vec<_>>();
    assert_eq!(names(&over, "/d"), ["b", "g"]);
    assert!(over.open(Path::new("/d/e/f"), OpenMode::Existing).is_err());
    over.remove_dir_all(Path::new("/d")).unwrap();
    assert!(over.list(Path::new("/d")).is_err());
    assert_eq!(names(&mem, "/d"), ["a", "b", "e"]);
    for name in ["/d/a", "/d/b", "/d/e/f"] {
        assert_eq!(content(&mem, Path::new(name)), bytes);
    }
}

#[test]
fn a_sync_of_all_is_there_for_disks_that_lose_nothing_by_it() {
    on_each_disk(|disk, dir| {
        let Some(shared) = disk.shared_sync(dir) else { return };
        disk.create_dir_all(&dir.join("new")).unwrap();
        let file = disk.open(&dir.join("new/file"), OpenMode::Create).unwrap();
        write_all_at(&*file, &mut [IoSlice::new(b"abc")], 0).unwrap();
        assert!(
            shared.is_worth(usize::MAX, Duration::ZERO),
            "so much dirty data that it costs more than syncs of all files there are"
        );
        shared.sync_all().unwrap();
        assert_eq!(content(disk, &dir.join("new/file")), b"abc");
    });
    let mem = MemDisk::new();
    mem.create_dir_all(Path::new("/mem/new")).unwrap();
    let file = mem.open(Path::new("/mem/new/file"), OpenMode::Create).unwrap();
    write_all_at(&*file, &mut [IoSlice::new(b"abc")], 0).unwrap();
    mem.shared_sync(Path::new("/mem")).unwrap().sync_all().unwrap();
    write_all_at(&*file, &mut [IoSlice::new(b"def")], 3).unwrap();
    mem.crash(Crash::LoseUnsynced);
    assert_eq!(content(&mem, Path::new("/mem/new/file")), b"abc");
}
