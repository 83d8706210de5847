//! What the disk keeps and what it forgets.

use super::*;

fn survivors(prepare: impl Fn(&FaultDisk)) -> Vec<FaultDisk> {
    (0..200)
        .map(|seed| {
            let disk = FaultDisk::new(seed);
            prepare(&disk);
            disk.crash()
        })
        .collect()
}

#[test]
fn what_is_synced_survives_and_the_rest_may_not() {
    let path = Path::new("file");
    let disks = survivors(|disk| {
        let file = disk.create(path).expect("create");
        file.write_at(&[1; 1024], 0).expect("write");
        file.sync_data().expect("sync");
        disk.sync_dir(Path::new(".")).expect("sync");
        file.write_at(&[2; 512], 256).expect("write");
        file.write_at(&[3; 512], 1024).expect("write");
    });
    let contents: Vec<_> = disks
        .iter()
        .map(|disk| disk.content(path).expect("synced"))
        .collect();
    assert!(
        contents
            .iter()
            .all(|c| c[..256] == [1; 256] && c[768..1024] == [1; 256])
    );
    let seen = |bytes: [u8; 2]| contents.iter().any(|c| [c[256], c[512]] == bytes);
    assert!(seen([1, 1]) && seen([1, 2]) && seen([2, 1]) && seen([2, 2]));
    assert!(contents.iter().any(|c| c.len() == 1024));
    assert!(contents.iter().any(|c| c.len() == 1536 && c[1024] == 3));
    assert!(contents.iter().any(|c| c.len() == 1536 && c[1024] == 0));
}

#[test]
fn names_survive_in_order_of_change() {
    let disks = survivors(|disk| {
        disk.create(Path::new("a")).expect("create");
        disk.rename(Path::new("a"), Path::new("b")).expect("rename");
    });
    let exists = |disk: &FaultDisk, name: &str| disk.exists(Path::new(name)).expect("exists");
    let count = |a, b| {
        let same = |disk: &&FaultDisk| (exists(disk, "a"), exists(disk, "b")) == (a, b);
        disks.iter().filter(same).count()
    };
    assert!(count(false, false) > 0 && count(true, false) > 0 && count(false, true) > 0);
    assert_eq!(count(true, true), 0);
}

#[test]
fn a_failed_sync_is_not_made_good_by_the_next_one() {
    let path = Path::new("file");
    let mut lost = 0;
    for seed in 0..50 {
        let disk = FaultDisk::new(seed);
        let file = disk.create(path).expect("create");
        file.write_at(&[0; 512], 0).expect("write");
        file.sync_data().expect("sync");
        disk.sync_dir(Path::new(".")).expect("sync");
        file.write_at(&[7; 512], 0).expect("write");
        disk.plan(Plan {
            fail_at: Some((disk.operations() + 1, io::ErrorKind::StorageFull)),
            ..Plan::default()
        });
        assert!(file.sync_data().is_err());
        file.sync_data().expect("nothing is dirty any more");
        assert_eq!(disk.content(path).expect("content"), [7; 512]);
        let after = disk.crash().content(path).expect("content");
        lost += usize::from(after == [0; 512]);
    }
    assert!((10..40).contains(&lost), "{lost}");
}

#[test]
fn a_stopped_disk_answers_nothing() {
    let disk = FaultDisk::new(1);
    disk.plan(Plan {
        stop_at: Some(1),
        ..Plan::default()
    });
    assert!(disk.create(Path::new("a")).is_err());
    assert!(disk.is_stopped());
    assert!(disk.exists(Path::new("a")).is_err());
    assert!(disk.crash().exists(Path::new("a")).is_ok());
}

#[test]
fn one_handle_holds_the_lock_until_it_goes() {
    let disk = FaultDisk::new(1);
    let first = disk.create(Path::new("a")).expect("create");
    let second = disk.open(Path::new("a"), Access::ReadWrite).expect("open");
    assert!(first.try_lock().expect("lock"));
    assert!(!second.try_lock().expect("lock"));
    drop(first);
    assert!(second.try_lock().expect("lock"));
}

#[test]
fn a_killed_process_leaves_what_it_wrote_and_not_its_locks() {
    let path = Path::new("file");
    let mut lost = 0;
    for seed in 0..50 {
        let disk = FaultDisk::new(seed);
        let file = disk.create(path).expect("create");
        file.sync_data().expect("sync");
        disk.sync_dir(Path::new(".")).expect("sync");
        assert!(file.try_lock().expect("lock"));
        file.write_at(&[7; 512], 0).expect("write");
        let next = disk.kill();
        assert!(file.write_at(&[8; 512], 0).is_err());
        assert_eq!(next.content(path).expect("content"), [7; 512]);
        let again = next.open(path, Access::ReadWrite).expect("open");
        assert!(again.try_lock().expect("lock"));
        lost += usize::from(next.crash().content(path).expect("content") != [7; 512]);
    }
    assert!((10..45).contains(&lost), "{lost}");
}
