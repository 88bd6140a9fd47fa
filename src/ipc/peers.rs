//! The clients of the server, found by tokens that do not outlive them.
#![forbid(unsafe_code)]

use std::time::Instant;

use super::connection::Connection;
use super::greeting::Greeting;

/// Names a client in epoll events; a token of a client that has gone finds nothing, also when its
/// place is used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Token {
    index: u32,
    generation: u32,
}

impl Token {
    pub fn to_u64(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.index)
    }

    pub fn from_u64(value: u64) -> Self {
        Self {
            index: value as u32,
            generation: (value >> 32) as u32,
        }
    }
}

/// A client in one of its two states.
pub enum Peer {
    Greeting(Greeting),
    Connected(Box<Connection>),
}

impl Peer {
    /// When a deferred request of it has to be answered.
    pub fn deadline(&self) -> Option<Instant> {
        match self {
            Self::Greeting(_) => None,
            Self::Connected(connection) => connection.deadline(),
        }
    }
}

#[derive(Default)]
struct Place {
    generation: u32,
    peer: Option<Peer>,
}

/// All clients.
#[derive(Default)]
pub struct Peers {
    places: Vec<Place>,
    free: Vec<u32>,
}

impl Peers {
    pub fn insert(&mut self, peer: Peer) -> Token {
        let index = self.free.pop().unwrap_or_else(|| {
            self.places.push(Place::default());
            (self.places.len() - 1) as u32
        });
        let place = &mut self.places[index as usize];
        place.peer = Some(peer);
        Token {
            index,
            generation: place.generation,
        }
    }

    pub fn get(&self, token: Token) -> Option<&Peer> {
        let place = self.places.get(token.index as usize)?;
        place
            .peer
            .as_ref()
            .filter(|_| place.generation == token.generation)
    }

    pub fn get_mut(&mut self, token: Token) -> Option<&mut Peer> {
        let place = self.places.get_mut(token.index as usize)?;
        place
            .peer
            .as_mut()
            .filter(|_| place.generation == token.generation)
    }

    pub fn remove(&mut self, token: Token) -> Option<Peer> {
        self.get(token)?;
        let place = self.places.get_mut(token.index as usize)?;
        // The highest generations are those of the listener's and the waker's event data.
        place.generation = (place.generation + 1) & 0x7fff_ffff;
        self.free.push(token.index);
        place.peer.take()
    }

    /// Drops unfinished handshakes and returns the connections.
    pub fn into_connections(self) -> Vec<Connection> {
        let peers = self.places.into_iter().filter_map(|place| place.peer);
        peers
            .filter_map(|peer| match peer {
                Peer::Greeting(_) => None,
                Peer::Connected(connection) => Some(*connection),
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn greeting() -> Peer {
        Peer::Greeting(Greeting::new(
            std::fs::File::open("/dev/null").unwrap().into(),
        ))
    }

    #[test]
    fn stale_tokens_find_nothing() {
        let mut peers = Peers::default();
        let first = peers.insert(greeting());
        assert_eq!(Token::from_u64(first.to_u64()), first);
        assert!(peers.remove(first).is_some());
        let second = peers.insert(greeting());
        assert_eq!(second.index, first.index);
        assert!(peers.get(first).is_none() && peers.get_mut(first).is_none());
        assert!(peers.remove(first).is_none());
        assert!(peers.get(second).is_some());
    }
}
