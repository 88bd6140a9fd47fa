//! A group on a channel that does as it is told.

use std::sync::Arc;

use parking_lot::Mutex;

use super::super::fake::{self, Script};
use super::*;
use crate::dfsm::{Config, Consequence, Ctx, Delivery, Mode, Outgoing, Plan, Verdict};

/// Replicates texts, applies all.
struct Texts;

impl Application for Texts {
    const NAME: &'static str = "dcdb";
    const PROTOCOL: u32 = 1;
    type Request = Vec<u8>;
    type Reply = usize;
    type Action = ();
    type Event = ();

    fn admit(&self, _: &Vec<u8>) -> Result<(), usize> {
        Ok(())
    }
    fn may_acknowledge(&self) -> bool {
        true
    }
    fn has_changed(_: &usize) -> bool {
        true
    }
    fn prepare(&mut self, request: Vec<u8>, _: &mut Ctx<()>) -> Result<Vec<Outgoing>, usize> {
        Ok(vec![Outgoing {
            subtype: 1,
            payload: request,
        }])
    }
    fn deliver(&mut self, delivery: Delivery<'_>, _: &mut Ctx<()>) -> Verdict<usize> {
        Verdict::Applied(delivery.payload.len())
    }
    fn confchg(&mut self, _: &[MemberId], _: &mut Ctx<()>) {}
    fn state(&mut self, _: &mut Ctx<()>) -> Option<Vec<u8>> {
        Some(Vec::new())
    }
    fn process_states(
        &mut self,
        states: &[(MemberId, Box<[u8]>)],
        _: &mut Ctx<()>,
    ) -> Option<Plan> {
        Some(Plan {
            leader: None,
            synced: vec![true; states.len()],
        })
    }
    fn next_update(&mut self) -> Option<Vec<u8>> {
        None
    }
    fn process_update(&mut self, _: &[u8], _: &mut Ctx<()>) -> bool {
        true
    }
    fn commit(&mut self, _: &mut Ctx<()>) -> bool {
        true
    }
    fn forget_sync(&mut self) {}
    fn synced(&mut self, _: &mut Ctx<()>) {}
    fn checksum(&mut self) -> Option<[u8; 32]> {
        None
    }
    fn event(&mut self, (): (), _: &mut Ctx<()>) -> Consequence {
        Consequence::None
    }
}

#[derive(Default)]
struct Answers(Vec<(Ticket, Result<usize, Busy>)>);

impl Surroundings<Texts> for Answers {
    fn act(&mut self, (): ()) {}
    fn applied(&mut self, ticket: Ticket, reply: usize) {
        self.0.push((ticket, Ok(reply)));
    }
    fn release(&mut self, _: Ticket) {}
    fn reply(&mut self, ticket: Ticket, result: Result<usize, Busy>) {
        self.0.push((ticket, result));
    }
}

struct Lab {
    group: Group<Texts, Answers>,
    requests: Arc<Mutex<Vec<Request>>>,
    script: Arc<Mutex<Script>>,
    mono: Duration,
}

const OWN: Member = Member { nodeid: 1, pid: 7 };

impl Lab {
    fn new() -> Lab {
        let requests = Arc::new(Mutex::new(Vec::new()));
        let into = requests.clone();
        let group = Group::new(
            Machine::new(Texts, Config::default()),
            Answers::default(),
            OWN.pid,
            Box::new(move |request| into.lock().push(request)),
        );
        Lab {
            group,
            requests,
            script: Arc::default(),
            mono: Duration::ZERO,
        }
    }

    fn now(&self) -> Now {
        Now {
            wall: 1000,
            mono: self.mono,
        }
    }

    fn tick_after(&mut self, pause: Duration) {
        self.mono += pause;
        self.group.handle(self.now(), Event::Tick);
    }

    /// The generation that was asked for.
    fn asked_to_open(&mut self) -> u64 {
        match self.requests.lock().drain(..).next_back() {
            Some(Request::Open(generation)) => generation,
            _ => panic!("not asked to open"),
        }
    }

    fn channel(&self) -> Box<dyn Channel> {
        fake::channel(&self.script)
    }

    fn dispatch(&mut self, result: Result<Vec<CpgEvent>, Error>) {
        self.script.lock().dispatch.push_back(result);
        self.group.dispatch(self.now());
    }

    /// Connected and alone in the group.
    fn joined() -> Lab {
        let mut lab = Lab::new();
        lab.tick_after(Duration::ZERO);
        let generation = lab.asked_to_open();
        lab.group.opened(lab.now(), generation, Some(lab.channel()));
        lab.confchg(vec![OWN]);
        assert_eq!(lab.group.machine.mode(), Mode::Synced);
        lab
    }

    fn confchg(&mut self, members: Vec<Member>) {
        let event = CpgEvent::Confchg {
            joined: members.clone(),
            members,
            left: Vec::new(),
        };
        self.dispatch(Ok(vec![event]));
    }

    fn submit(&mut self, ticket: Ticket, text: &[u8]) {
        let request = text.to_vec();
        self.group.handle(
            self.now(),
            Event::Submit {
                ticket: Some(ticket),
                request,
            },
        );
        self.group.flush(self.now());
    }

    /// Everything sent comes back.
    fn deliver(&mut self) {
        let sent = std::mem::take(&mut self.script.lock().sent);
        let deliver = |message| CpgEvent::Deliver {
            sender: OWN,
            message,
        };
        self.dispatch(Ok(sent.into_iter().map(deliver).collect()));
    }

    fn answers(&mut self) -> Vec<(Ticket, Result<usize, Busy>)> {
        std::mem::take(&mut self.group.surroundings.0)
    }
}

#[test]
fn no_room_delays_sends_but_no_delivery() {
    let mut lab = Lab::joined();
    lab.submit(1, b"a");
    lab.script
        .lock()
        .send
        .extend([Err(Error::TryAgain), Err(Error::Interrupt)]);
    lab.submit(2, b"bb");
    assert!(lab.group.is_blocked());
    lab.deliver();
    assert_eq!(lab.answers(), [(1, Ok(1))]);
    lab.group.flush(lab.now());
    assert!(lab.group.is_blocked());
    lab.submit(3, b"ccc");
    assert!(!lab.group.is_blocked());
    lab.deliver();
    assert_eq!(lab.answers(), [(2, Ok(2)), (3, Ok(3))]);
}

#[test]
fn a_broken_connection_is_closed_and_opened_again() {
    let mut lab = Lab::joined();
    lab.submit(1, b"lost");
    lab.dispatch(Err(Error::Library));
    assert_eq!(lab.answers(), [(1, Err(Busy))]);
    assert!(matches!(
        lab.requests.lock().drain(..).next(),
        Some(Request::Discard(_))
    ));
    assert!(lab.group.fd().is_none());
    lab.tick_after(Duration::from_secs(1));
    let first = lab.asked_to_open();
    lab.group.opened(lab.now(), first, None);
    lab.submit(2, b"refused at once");
    assert_eq!(lab.answers(), [(2, Err(Busy))]);
    lab.tick_after(Duration::from_secs(1));
    let second = lab.asked_to_open();
    assert!(second > first);
    // An answer that comes too late is closed, not used.
    lab.group.opened(lab.now(), first, Some(lab.channel()));
    assert!(matches!(
        lab.requests.lock().drain(..).next(),
        Some(Request::Discard(_))
    ));
    assert!(lab.group.fd().is_none());
    lab.group.opened(lab.now(), second, Some(lab.channel()));
    assert!(lab.group.fd().is_some());
}

#[test]
fn a_send_that_fails_for_good_is_a_broken_connection() {
    let mut lab = Lab::joined();
    lab.script.lock().send.push_back(Err(Error::BadHandle));
    lab.submit(1, b"x");
    assert_eq!(lab.answers(), [(1, Err(Busy))]);
    assert!(lab.group.fd().is_none());
    assert!(!lab.group.is_blocked());
}

#[test]
fn events_behind_the_one_that_ends_the_membership_are_dropped() {
    let mut lab = Lab::joined();
    let (short, late) = (vec![1, 2, 3], vec![4]);
    let deliver = |message| CpgEvent::Deliver {
        sender: OWN,
        message,
    };
    lab.submit(1, b"never comes back");
    // A message that is too short makes the machine leave.
    lab.dispatch(Ok(vec![deliver(short), deliver(late)]));
    assert_eq!(lab.group.machine.mode(), Mode::Leave);
    let Some(Request::Leave(generation, _)) = lab.requests.lock().drain(..).next() else {
        panic!("not asked to leave");
    };
    assert_eq!(lab.answers(), [(1, Err(Busy))]);
    lab.group.left(lab.now(), generation + 1);
    assert!(lab.requests.lock().is_empty());
    lab.group.left(lab.now(), generation);
    let again = lab.asked_to_open();
    lab.group.opened(lab.now(), again, Some(lab.channel()));
    lab.confchg(vec![OWN]);
    assert_eq!(lab.group.machine.mode(), Mode::Synced);
}

#[test]
fn stop_leaves_and_closes() {
    let mut lab = Lab::joined();
    lab.group.handle(lab.now(), Event::Stop);
    let Some(Request::Leave(generation, _)) = lab.requests.lock().drain(..).next() else {
        panic!("not asked to leave");
    };
    assert!(!lab.group.is_closed());
    lab.group.left(lab.now(), generation);
    assert!(lab.group.is_closed());
    let mut never_connected = Lab::new();
    never_connected
        .group
        .handle(never_connected.now(), Event::Stop);
    assert!(never_connected.group.is_closed());
}

#[test]
fn retries_are_counted_like_those_of_the_c_daemon() {
    let ms = Duration::from_millis;
    let mut queue = SendQueue::default();
    queue.push(vec![0; 10], None);
    assert_eq!(queue.refused(ms(0)), None);
    assert_eq!(queue.refused(ms(990)), None);
    assert_eq!(queue.refused(ms(1000)), Some(10));
    assert_eq!(queue.refused(ms(1001)), None);
    assert_eq!(queue.refused(ms(2100)), Some(21));
    assert_eq!(queue.sent(ms(2500)), 25);
    assert_eq!(queue.bytes, 0);
    queue.push(vec![0; 10], None);
    assert_eq!(queue.sent(ms(9000)), 0);
}

#[test]
fn what_nobody_waits_for_any_more_is_not_sent() {
    let mut lab = Lab::joined();
    lab.script.lock().send.push_back(Err(Error::TryAgain));
    lab.submit(1, b"late");
    lab.mono += Duration::from_secs(29);
    lab.script.lock().send.push_back(Err(Error::TryAgain));
    lab.submit(2, b"in time");
    lab.mono += Duration::from_secs(1);
    lab.group.handle(lab.now(), Event::Tick);
    lab.group.flush(lab.now());
    lab.deliver();
    assert_eq!(lab.answers(), [(1, Err(Busy)), (2, Ok(7))]);
    lab.script.lock().send.push_back(Err(Error::TryAgain));
    lab.submit(3, b"late, too");
    assert!(lab.group.is_blocked());
    lab.mono += Duration::from_secs(30);
    lab.group.flush(lab.now());
    assert!(!lab.group.is_blocked());
    assert_eq!(lab.group.queue.bytes, 0);
}

#[test]
fn no_more_is_sent_than_what_can_be_under_way() {
    let mut lab = Lab::joined();
    let count = WINDOW as u64 + 10;
    (0..count).for_each(|ticket| lab.submit(ticket, b"x"));
    assert_eq!(lab.script.lock().sent.len(), WINDOW);
    // Its own messages make room, nothing else has to.
    assert!(!lab.group.is_blocked());
    lab.deliver();
    lab.group.flush(lab.now());
    assert_eq!(lab.script.lock().sent.len(), 10);
    lab.deliver();
    assert_eq!(lab.answers().len(), count as usize);
}
