#![forbid(unsafe_code)]

use std::sync::atomic::AtomicUsize;
use std::sync::mpsc;

use super::*;

/// Waits until it is opened before a change has settled; counts what is forgotten.
struct Gate {
    open: Mutex<mpsc::Receiver<()>>,
    forgotten: Arc<AtomicUsize>,
}

impl Barrier for Gate {
    fn settle(&self, _: &Change) {
        let _ = self.open.lock().recv();
    }

    fn invalidate(&self, _: &Change) {
        self.forgotten.fetch_add(1, SeqCst);
    }

    fn quorum_changed(&self) {}
}

/// Gives `announcer` a gate; returns what opens it and what counts.
fn gate(announcer: &Announcer) -> (mpsc::Sender<()>, Arc<AtomicUsize>) {
    let (opener, open) = mpsc::channel();
    let forgotten = Arc::new(AtomicUsize::new(0));
    announcer.set_barrier(Arc::new(Gate {
        open: Mutex::new(open),
        forgotten: forgotten.clone(),
    }));
    (opener, forgotten)
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
    let (open, _) = gate(&announcer);
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
    let (open, _) = gate(&announcer);
    announcer.promise(change())();
    let (tx, rx) = mpsc::channel();
    announcer.when_announced(Box::new(move || tx.send(()).unwrap()));
    rx.recv_timeout(Duration::from_secs(5)).unwrap();
    assert_eq!(count.load(SeqCst), 0);
    drop(open);
    announcer.stop();
}

#[test]
fn a_refused_change_is_forgotten_at_once_and_announced_in_turn() {
    let (announcer, count) = announcer();
    let (open, forgotten) = gate(&announcer);
    announcer.promise(change())();
    announcer.refused(*change());
    assert_eq!((forgotten.load(SeqCst), count.load(SeqCst)), (1, 0));
    let (tx, rx) = mpsc::channel();
    let seen = count.clone();
    open.send(()).unwrap();
    announcer.when_announced(Box::new(move || tx.send(seen.load(SeqCst)).unwrap()));
    assert_eq!(rx.recv_timeout(Duration::from_secs(5)).unwrap(), 2);
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
fn the_kernel_forgets_before_anything_is_announced() {
    let (announcer, count) = announcer();
    let (_open, forgotten) = gate(&announcer);
    announcer.forget(&change());
    assert_eq!(forgotten.load(SeqCst), 1);
    let (seen, was) = (count.clone(), forgotten.clone());
    let (tx, rx) = mpsc::channel();
    let told = Box::new(move || tx.send((was.load(SeqCst), seen.load(SeqCst))).unwrap());
    announcer.replaced(vec![*change(), *change()]);
    announcer.call(told);
    announcer.quorum_changed();
    // Of a replaced tree no effects are announced, but the new one is told of.
    assert_eq!(rx.recv_timeout(Duration::from_secs(5)).unwrap(), (3, 0));
    announcer.stop();
}
