//! An application whose local requests are recorded payloads, sent as they are.

use pmxcfs::dfsm::{Application, Consequence, Ctx, Delivery, MemberId, Outgoing, Plan, Verdict};

pub struct Raw<A>(pub A);

impl<A: Application> Application for Raw<A> {
    const NAME: &'static str = A::NAME;
    const PROTOCOL: u32 = A::PROTOCOL;

    type Request = Outgoing;
    type Reply = A::Reply;
    type Action = A::Action;
    type Event = A::Event;

    fn admit(&self, _request: &Outgoing) -> Result<(), A::Reply> {
        Ok(())
    }

    fn may_acknowledge(&self) -> bool {
        self.0.may_acknowledge()
    }
    fn has_changed(reply: &Self::Reply) -> bool {
        A::has_changed(reply)
    }

    fn prepare(
        &mut self,
        request: Outgoing,
        _ctx: &mut Ctx<A::Action>,
    ) -> Result<Vec<Outgoing>, A::Reply> {
        Ok(vec![request])
    }

    fn deliver(&mut self, delivery: Delivery<'_>, ctx: &mut Ctx<A::Action>) -> Verdict<A::Reply> {
        self.0.deliver(delivery, ctx)
    }

    fn confchg(&mut self, members: &[MemberId], ctx: &mut Ctx<A::Action>) {
        self.0.confchg(members, ctx);
    }

    fn state(&mut self, ctx: &mut Ctx<A::Action>) -> Option<Vec<u8>> {
        self.0.state(ctx)
    }

    fn process_states(
        &mut self,
        states: &[(MemberId, Box<[u8]>)],
        ctx: &mut Ctx<A::Action>,
    ) -> Option<Plan> {
        self.0.process_states(states, ctx)
    }

    fn next_update(&mut self) -> Option<Vec<u8>> {
        self.0.next_update()
    }

    fn process_update(&mut self, payload: &[u8], ctx: &mut Ctx<A::Action>) -> bool {
        self.0.process_update(payload, ctx)
    }

    fn commit(&mut self, ctx: &mut Ctx<A::Action>) -> bool {
        self.0.commit(ctx)
    }

    fn forget_sync(&mut self) {
        self.0.forget_sync();
    }

    fn synced(&mut self, ctx: &mut Ctx<A::Action>) {
        self.0.synced(ctx);
    }

    fn checksum(&mut self) -> Option<[u8; 32]> {
        self.0.checksum()
    }

    fn event(&mut self, event: A::Event, ctx: &mut Ctx<A::Action>) -> Consequence {
        self.0.event(event, ctx)
    }
}
