#![forbid(unsafe_code)]

use std::sync::atomic::AtomicUsize;
use std::sync::mpsc;

use super::*;

struct Gate(Mutex<mpsc::Receiver<()>>);

impl Barrier for Gate {
    fn concerns(&self, _: &Change) -> bool {
        true
    }

    fn settle(&self, _: &Change) {
        let _ = self.0.lock().recv();
    }

    fn invalidate(&self, change: &Change) {
        self.settle(change);
    }

    fn quorum_changed(&self) {}
}

fn change() -> Box<Change> {
    let root = crate::memdb::RootRow {
        version: 2,
        writer: 0,
        mtime: 0,
    };
    let effects = Effects::default();
    Box::new(Change {
        delete: None,
        put: None,
        root,
        removed: None,
        inode: 2,
        effects,
    })
}

fn written() -> Box<Change> {
    let row = crate::memdb::Row {
        inode: 2,
        parent: 0,
        version: 3,
        writer: 0,
        mtime: 0,
        type_code: 8,
        name: Arc::from(&b"f"[..]),
        data: Some(Arc::from(&b""[..])),
    };
    Box::new(Change {
        put: Some(row),
        ..*change()
    })
}

fn announcer() -> (Arc<Announcer>, Arc<AtomicUsize>) {
    let count = Arc::new(AtomicUsize::new(0));
    let counter = count.clone();
    let sink = Arc::new(move |_: &Effects| {
        counter.fetch_add(1, SeqCst);
    });
    (Announcer::start(sink).unwrap(), count)
}

#[test]
fn without_promises_nothing_waits() {
    let (announcer, count) = announcer();
    announcer.announce(Effects::default());
    assert_eq!(count.load(SeqCst), 1);
    let (tx, rx) = mpsc::channel();
    announcer.when_announced(Box::new(move || tx.send(()).unwrap()));
    rx.try_recv().unwrap();
    announcer.stop();
}

#[test]
fn a_question_waits_for_the_promise_that_was_before_it() {
    let (announcer, count) = announcer();
    let (open, gate) = mpsc::channel();
    announcer.set_barrier(Arc::new(Gate(Mutex::new(gate))));
    let keep = announcer.promise(change());
    assert!(announcer.pending());
    keep();
    let (tx, rx) = mpsc::channel();
    let seen = count.clone();
    announcer.when_announced(Box::new(move || tx.send(seen.load(SeqCst)).unwrap()));
    assert!(rx.try_recv().is_err());
    open.send(()).unwrap();
    assert_eq!(rx.recv_timeout(Duration::from_secs(5)).unwrap(), 1);
    announcer.stop();
}

#[test]
fn patience_ends_when_the_barrier_does_not() {
    let (announcer, count) = announcer();
    let (_open, gate) = mpsc::channel();
    announcer.set_barrier(Arc::new(Gate(Mutex::new(gate))));
    announcer.promise(change())();
    let (tx, rx) = mpsc::channel();
    announcer.when_announced(Box::new(move || tx.send(()).unwrap()));
    rx.recv_timeout(Duration::from_secs(5)).unwrap();
    assert_eq!(count.load(SeqCst), 0);
    announcer.stop();
}

#[test]
fn a_barrier_that_hangs_does_not_hold_up_announcements_for_ever() {
    let order = Arc::new(Mutex::new(Vec::new()));
    let log = order.clone();
    let sink = Arc::new(move |e: &Effects| log.lock().push(e.guests.len()));
    let announcer = Announcer::start(sink).unwrap();
    let (open, gate) = mpsc::channel();
    announcer.set_barrier(Arc::new(Gate(Mutex::new(gate))));
    // All of them are there before the first one hangs.
    announcer.forget(&change());
    announcer.promise(change())();
    // In the same directory.
    for _ in 0..20 {
        announcer.promise(written())();
    }
    let remove = crate::memdb::GuestEvent::Remove { vmid: 1 };
    announcer.announce(Effects {
        touched: Vec::new(),
        guests: vec![remove],
    });
    open.send(()).unwrap();
    let end = Instant::now() + STUCK * 3;
    // As the IPC thread asks: it leaves no waiter.
    while announcer.pending() {
        assert!(Instant::now() < end, "nothing is announced");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(order.lock().len(), 22);
    assert_eq!(order.lock().last(), Some(&1));
    // Free at last: announced once only, and later changes wait for their barriers again.
    open.send(()).unwrap();
    announcer.promise(change())();
    let (tx, rx) = mpsc::channel();
    announcer.when_announced(Box::new(move || tx.send(()).unwrap()));
    open.send(()).unwrap();
    rx.recv_timeout(Duration::from_secs(5)).unwrap();
    assert_eq!(order.lock()[21..], [1, 0]);
    announcer.stop();
}

#[test]
fn a_panic_in_the_sink_does_not_end_announcements() {
    let count = Arc::new(AtomicUsize::new(0));
    let counter = count.clone();
    let sink = Arc::new(move |_: &Effects| {
        assert!(counter.fetch_add(1, SeqCst) > 0, "the first one fails");
    });
    let announcer = Announcer::start(sink).unwrap();
    let (open, gate) = mpsc::channel();
    announcer.set_barrier(Arc::new(Gate(Mutex::new(gate))));
    for _ in 0..2 {
        announcer.promise(change())();
        open.send(()).unwrap();
    }
    // Writing the backtrace may take longer than a question waits.
    let end = Instant::now() + Duration::from_secs(20);
    while announcer.pending() {
        assert!(Instant::now() < end, "the second one is not announced");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(count.load(SeqCst), 2);
    announcer.stop();
}

#[test]
fn a_refused_change_is_announced_when_the_kernel_has_forgotten() {
    let (announcer, count) = announcer();
    let (open, gate) = mpsc::channel();
    announcer.set_barrier(Arc::new(Gate(Mutex::new(gate))));
    announcer.refused(change());
    assert!(announcer.pending());
    let (tx, rx) = mpsc::channel();
    let seen = count.clone();
    announcer.when_announced(Box::new(move || tx.send(seen.load(SeqCst)).unwrap()));
    open.send(()).unwrap();
    assert_eq!(rx.recv_timeout(Duration::from_secs(5)).unwrap(), 1);
    announcer.stop();
}

#[test]
fn later_announcements_stay_behind_earlier_promises() {
    let order = Arc::new(Mutex::new(Vec::new()));
    let log = order.clone();
    let sink = Arc::new(move |e: &Effects| log.lock().push(e.guests.len()));
    let announcer = Announcer::start(sink).unwrap();
    let keep = announcer.promise(change());
    keep();
    let remove = crate::memdb::GuestEvent::Remove { vmid: 1 };
    announcer.announce(Effects {
        touched: Vec::new(),
        guests: vec![remove],
    });
    let (tx, rx) = mpsc::channel();
    announcer.when_announced(Box::new(move || tx.send(()).unwrap()));
    rx.recv_timeout(Duration::from_secs(5)).unwrap();
    assert_eq!(*order.lock(), [0, 1]);
    announcer.stop();
}

#[test]
fn changes_of_others_are_announced_after_the_kernel_forgot() {
    let (announcer, count) = announcer();
    let (open, gate) = mpsc::channel();
    announcer.set_barrier(Arc::new(Gate(Mutex::new(gate))));
    announcer.forget(&change());
    announcer.announce(Effects::default());
    assert!(announcer.pending());
    let seen = count.clone();
    let (tx, rx) = mpsc::channel();
    let told = Box::new(move || tx.send(seen.load(SeqCst)).unwrap());
    announcer.replaced(vec![*change(), *change()], told);
    announcer.quorum_changed();
    assert!(rx.recv_timeout(Duration::from_millis(20)).is_err());
    (0..3).for_each(|_| open.send(()).unwrap());
    // Of a replaced tree no effects are announced, but the new one is told of.
    assert_eq!(rx.recv_timeout(Duration::from_secs(5)).unwrap(), 1);
    announcer.stop();
}
