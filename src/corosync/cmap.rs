//! The configuration corosync runs with (cluster-protocol.md section 3).

use std::cell::Cell;
use std::ffi::{CStr, CString, c_char, c_void};
use std::marker::PhantomData;
use std::os::fd::{BorrowedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use corosync_sys as sys;

use super::Error;

/// Everything about the nodes stands below it.
pub const NODES: &CStr = c"nodelist.node.";
/// Version of the configuration.
pub const CONFIG_VERSION: &CStr = c"totem.config_version";
/// Name of the cluster.
pub const CLUSTER_NAME: &CStr = c"totem.cluster_name";

const TRACK_CHANGES: u32 = sys::CMAP_TRACK_ADD | sys::CMAP_TRACK_DELETE | sys::CMAP_TRACK_MODIFY;
/// A value that grows between the question for its length and the one for its bytes is asked for
/// again this often.
const GROWTH_RETRIES: usize = 8;

/// A node as configured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Never 0.
    pub id: u32,
    /// `name`, or else `ring0_addr`. Never empty.
    pub name: String,
}

/// A connection to the map of corosync's keys and values.
pub struct Cmap {
    handle: sys::cmap_handle_t,
    fd: RawFd,
    /// Set by the callback. Boxed: the library knows its address.
    changed: Box<AtomicBool>,
    /// Not `Sync`, like the other handles.
    one_thread: PhantomData<Cell<()>>,
}

impl Cmap {
    /// Connects; nothing is tracked yet.
    pub fn connect() -> Result<Cmap, Error> {
        let mut handle = 0;
        // SAFETY: the library writes one value.
        Error::check(unsafe { sys::cmap_initialize(&mut handle) })?;
        // From here on dropping `cmap` closes the handle.
        let changed = Box::new(AtomicBool::new(false));
        let mut cmap = Cmap {
            handle,
            fd: -1,
            changed,
            one_thread: PhantomData,
        };
        // SAFETY: open handle; the library writes one value.
        Error::check(unsafe { sys::cmap_fd_get(handle, &mut cmap.fd) })?;
        Ok(cmap)
    }

    /// From now on [`Cmap::dispatch`] tells of changes of the nodes and of the version.
    pub fn track(&mut self) -> Result<(), Error> {
        self.track_key(NODES, TRACK_CHANGES | sys::CMAP_TRACK_PREFIX)?;
        self.track_key(CONFIG_VERSION, TRACK_CHANGES)
    }

    fn track_key(&mut self, key: &CStr, events: u32) -> Result<(), Error> {
        let mut track = 0;
        let changed: *const AtomicBool = &*self.changed;
        // SAFETY: open handle; the key lives longer than the call; `changed` is boxed and lives
        // until the handle is closed, and being atomic it may be written through a shared pointer.
        Error::check(unsafe {
            sys::cmap_track_add(
                self.handle,
                key.as_ptr(),
                events as i32,
                Some(on_change),
                changed.cast_mut().cast(),
                &mut track,
            )
        })
    }

    /// Becomes readable when there is something to dispatch, also when the connection breaks.
    pub fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the library keeps it open until cmap_finalize, which runs when self is dropped.
        unsafe { BorrowedFd::borrow_raw(self.fd) }
    }

    /// Has anything tracked changed since the last call? Does not wait.
    pub fn dispatch(&mut self) -> Result<bool, Error> {
        // SAFETY: open handle; the callback touches nothing but the flag.
        let code = unsafe { sys::cmap_dispatch(self.handle, sys::CS_DISPATCH_ALL) };
        match Error::check(code) {
            Ok(()) | Err(Error::TryAgain) => Ok(self.changed.swap(false, SeqCst)),
            Err(err) => Err(err),
        }
    }

    /// `totem.config_version`. [`Error::NotExist`]: a configuration may lack it.
    pub fn config_version(&self) -> Result<u64, Error> {
        let mut value = 0;
        // SAFETY: open handle; the key is terminated; the library writes one value.
        Error::check(unsafe {
            sys::cmap_get_uint64(self.handle, CONFIG_VERSION.as_ptr(), &mut value)
        })?;
        Ok(value)
    }

    /// `totem.cluster_name`.
    pub fn cluster_name(&self) -> Result<String, Error> {
        self.text(CLUSTER_NAME)
    }

    /// All nodes that have a name and an id, in the order of the map.
    pub fn nodes(&self) -> Result<Vec<Node>, Error> {
        let mut keys = Vec::new();
        let mut keys_of = Iter::start(self, NODES)?;
        while let Some(key) = keys_of.next_key()? {
            keys.push(key);
        }
        drop(keys_of);
        let mut list = NodeList::default();
        for key in keys {
            let Some((number, field)) = split_key(&key) else {
                continue;
            };
            // A key that went away in between, or has a strange type, counts as absent: the change
            // is tracked and makes the caller read again.
            match field {
                "nodeid" => list.id(number, absent(self.number(&key))?),
                "name" => list.name(number, absent(self.text_of(&key))?),
                "ring0_addr" => list.address(number, absent(self.text_of(&key))?),
                _ => {}
            }
        }
        Ok(list.finish())
    }

    fn number(&self, key: &str) -> Result<u32, Error> {
        let key = CString::new(key).map_err(|_| Error::InvalidParam)?;
        let mut value = 0;
        // SAFETY: open handle; the key is terminated; the library writes one value.
        Error::check(unsafe { sys::cmap_get_uint32(self.handle, key.as_ptr(), &mut value) })?;
        Ok(value)
    }

    fn text_of(&self, key: &str) -> Result<String, Error> {
        self.text(&CString::new(key).map_err(|_| Error::InvalidParam)?)
    }

    /// A string of any length. [`Error::InvalidParam`]: not a string, or not UTF-8.
    fn text(&self, key: &CStr) -> Result<String, Error> {
        for _ in 0..GROWTH_RETRIES {
            let (mut length, mut kind) = (0, 0);
            // SAFETY: open handle; terminated key; without a place for the value only its length
            // and type are written.
            Error::check(unsafe {
                sys::cmap_get(
                    self.handle,
                    key.as_ptr(),
                    std::ptr::null_mut(),
                    &mut length,
                    &mut kind,
                )
            })?;
            if kind != sys::CMAP_VALUETYPE_STRING {
                return Err(Error::InvalidParam);
            }
            let mut value = vec![0u8; length];
            // SAFETY: as above; `value` has the room that `length` says, and not more is written.
            let code = unsafe {
                sys::cmap_get(
                    self.handle,
                    key.as_ptr(),
                    value.as_mut_ptr().cast(),
                    &mut length,
                    &mut kind,
                )
            };
            match Error::check(code) {
                Err(Error::InvalidParam) => continue,
                result => result?,
            }
            if kind != sys::CMAP_VALUETYPE_STRING {
                return Err(Error::InvalidParam);
            }
            value.truncate(length);
            return string(value);
        }
        Err(Error::TryAgain)
    }
}

impl Drop for Cmap {
    fn drop(&mut self) {
        // SAFETY: open handle, never used again; no callback runs after it. Fails if corosync is
        // gone; there is nothing to do about that.
        let _ = unsafe { sys::cmap_finalize(self.handle) };
    }
}

/// Walks the keys below a prefix.
struct Iter<'a> {
    cmap: &'a Cmap,
    handle: sys::cmap_iter_handle_t,
}

impl<'a> Iter<'a> {
    fn start(cmap: &'a Cmap, prefix: &CStr) -> Result<Self, Error> {
        let mut handle = 0;
        // SAFETY: open handle; terminated prefix; the library writes one value.
        Error::check(unsafe { sys::cmap_iter_init(cmap.handle, prefix.as_ptr(), &mut handle) })?;
        Ok(Iter { cmap, handle })
    }

    /// The next key; one that is not UTF-8 comes with replacement characters and fits no pattern.
    fn next_key(&mut self) -> Result<Option<String>, Error> {
        let mut key = [0 as c_char; sys::CMAP_KEYNAME_MAXLEN as usize + 1];
        // SAFETY: open handle and iterator; the buffer has the size that the header asks for;
        // length and type are optional.
        let code = unsafe {
            sys::cmap_iter_next(
                self.cmap.handle,
                self.handle,
                key.as_mut_ptr(),
                std::ptr::null_mut(),
                std::ptr::null_mut(),
            )
        };
        if code == sys::CS_ERR_NO_SECTIONS {
            return Ok(None);
        }
        Error::check(code)?;
        let bytes = key.map(|c| c as u8);
        let key = CStr::from_bytes_until_nul(&bytes).map_err(|_| Error::InvalidParam)?;
        Ok(Some(key.to_string_lossy().into_owned()))
    }
}

impl Drop for Iter<'_> {
    fn drop(&mut self) {
        // SAFETY: open handle and iterator, which is never used again.
        let _ = unsafe { sys::cmap_iter_finalize(self.cmap.handle, self.handle) };
    }
}

unsafe extern "C" fn on_change(
    _handle: sys::cmap_handle_t,
    _track: sys::cmap_track_handle_t,
    _event: i32,
    _key: *const c_char,
    _new: sys::cmap_notify_value,
    _old: sys::cmap_notify_value,
    changed: *mut c_void,
) {
    // SAFETY: called by cmap_dispatch with the pointer given to cmap_track_add, which points to an
    // atomic flag that lives until the handle is closed. A store cannot panic.
    unsafe { &*changed.cast_const().cast::<AtomicBool>() }.store(true, SeqCst);
}

/// Bytes of a string value, whose terminating NUL may or may not be counted.
fn string(mut value: Vec<u8>) -> Result<String, Error> {
    if let Some(end) = value.iter().position(|b| *b == 0) {
        value.truncate(end);
    }
    String::from_utf8(value).map_err(|_| Error::InvalidParam)
}

/// `nodelist.node.N.field`
fn split_key(key: &str) -> Option<(u32, &str)> {
    let (number, field) = key.strip_prefix("nodelist.node.")?.split_once('.')?;
    Some((number.parse().ok()?, field))
}

/// Values that are not there, or not what they should be, are absent. The loss of the connection
/// is an error.
fn absent<T>(value: Result<T, Error>) -> Result<Option<T>, Error> {
    match value {
        Ok(value) => Ok(Some(value)),
        Err(Error::NotExist | Error::InvalidParam) => Ok(None),
        Err(err) => Err(err),
    }
}

/// Puts nodes together from keys in the order of the map.
#[derive(Default)]
struct NodeList {
    done: Vec<Node>,
    number: Option<u32>,
    id: u32,
    name: String,
}

impl NodeList {
    fn at(&mut self, number: u32) {
        if self.number != Some(number) {
            self.complete();
            self.number = Some(number);
        }
    }

    fn id(&mut self, number: u32, id: Option<u32>) {
        self.at(number);
        self.id = id.unwrap_or(0);
    }

    fn name(&mut self, number: u32, name: Option<String>) {
        self.at(number);
        if let Some(name) = name {
            self.name = name;
        }
    }

    fn address(&mut self, number: u32, address: Option<String>) {
        self.at(number);
        if self.name.is_empty() {
            self.name = address.unwrap_or_default();
        }
    }

    fn complete(&mut self) {
        let (id, name) = (std::mem::take(&mut self.id), std::mem::take(&mut self.name));
        if id == 0 || name.is_empty() {
            return;
        }
        // A second node with the same id replaces the first.
        self.done.retain(|node| node.id != id);
        self.done.push(Node { id, name });
    }

    fn finish(mut self) -> Vec<Node> {
        self.complete();
        self.done
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(id: u32, name: &str) -> Node {
        Node {
            id,
            name: name.to_owned(),
        }
    }

    #[test]
    fn keys_are_split_and_strange_ones_skipped() {
        assert_eq!(split_key("nodelist.node.0.nodeid"), Some((0, "nodeid")));
        assert_eq!(split_key("nodelist.node.12.a.b"), Some((12, "a.b")));
        assert_eq!(split_key("nodelist.node.x.nodeid"), None);
        assert_eq!(split_key("nodelist.node.1"), None);
        assert_eq!(split_key("nodelist.local_node_pos"), None);
    }

    #[test]
    fn name_wins_over_address_in_any_order() {
        let mut list = NodeList::default();
        list.id(0, Some(1));
        list.name(0, Some("a".into()));
        list.address(0, Some("10.0.0.1".into()));
        list.address(1, Some("10.0.0.2".into()));
        list.name(1, Some("b".into()));
        list.id(1, Some(2));
        list.address(2, Some("10.0.0.3".into()));
        list.id(2, Some(3));
        assert_eq!(
            list.finish(),
            [node(1, "a"), node(2, "b"), node(3, "10.0.0.3")]
        );
    }

    #[test]
    fn nodes_without_name_or_id_are_left_out_and_a_later_one_replaces() {
        let mut list = NodeList::default();
        list.id(0, Some(0));
        list.name(0, Some("zero".into()));
        list.id(1, Some(4));
        list.name(2, Some("no id".into()));
        list.id(3, Some(5));
        list.name(3, Some("first".into()));
        list.id(4, Some(5));
        list.name(4, Some("second".into()));
        list.id(5, None);
        assert_eq!(list.finish(), [node(5, "second")]);
    }

    #[test]
    fn strings_end_at_their_nul() {
        assert_eq!(string(b"lab\0".to_vec()).unwrap(), "lab");
        assert_eq!(string(b"lab".to_vec()).unwrap(), "lab");
        assert_eq!(string(b"".to_vec()).unwrap(), "");
        let long = "n".repeat(300);
        assert_eq!(string(long.clone().into_bytes()).unwrap(), long);
        assert_eq!(string(vec![0xff, 0]), Err(Error::InvalidParam));
    }

    #[test]
    fn without_corosync_there_is_no_handle() {
        // Whoever runs a corosync beside the tests gets a handle; both must end without a leak.
        if let Err(err) = Cmap::connect() {
            assert!(err.is_lost(), "{err}");
        }
    }
}
