//! A service that does for each connection what it is told: the other side of the transport,
//! written from ipc-transport.md for messages of 12328 bytes.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::FileExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use rustix::mm::{MapFlags, ProtFlags, mmap};
use rustix::thread::futex;

/// Largest message.
pub const MESSAGE: usize = 12328;
/// Bytes of the data files for it.
const DATA: usize = 16384;

/// What happens on one connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Behaviour {
    /// Closed without an answer to the handshake.
    Close,
    /// Refused with this error.
    Refuse(i32),
    /// The data files are too small.
    Small,
    /// So many requests are answered with their own payload; the next one with a hang-up.
    Echo(usize),
    /// The answer has another id.
    OtherId,
    /// The chunk of the answer has no magic.
    NoMagic,
    /// The answer says that it is larger than its chunk.
    Larger,
}

/// Name of a service of this test run.
pub fn name() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    format!("libpmxcfs-test-{}-{count}", std::process::id())
}

/// Serves one connection after the other in a thread.
pub fn serve(name: &str, behaviours: &[Behaviour]) -> std::thread::JoinHandle<()> {
    let mut abstract_name = [0u8; 107];
    abstract_name[..name.len()].copy_from_slice(name.as_bytes());
    let address = SocketAddr::from_abstract_name(abstract_name).unwrap();
    let listener = UnixListener::bind_addr(&address).unwrap();
    let (name, behaviours) = (name.to_string(), behaviours.to_vec());
    std::thread::spawn(move || {
        for (index, behaviour) in behaviours.into_iter().enumerate() {
            let (socket, _) = listener.accept().unwrap();
            connection(socket, &format!("/dev/shm/{name}-{index}"), behaviour);
        }
    })
}

fn int(bytes: &[u8], at: usize) -> i32 {
    i32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn connection(mut socket: UnixStream, dir: &str, behaviour: Behaviour) {
    let mut request = [0u8; 24];
    socket.read_exact(&mut request).unwrap();
    assert_eq!(
        (int(&request, 0), int(&request, 8), int(&request, 16)),
        (-1, 24, 1_048_576)
    );
    let mut response = vec![0u8; 12328];
    response[0..4].copy_from_slice(&(-1i32).to_le_bytes());
    response[8..12].copy_from_slice(&12328i32.to_le_bytes());
    response[24..28].copy_from_slice(&1i32.to_le_bytes());
    response[28..32].copy_from_slice(&(MESSAGE as u32).to_le_bytes());
    match behaviour {
        Behaviour::Close => return,
        Behaviour::Refuse(error) => {
            response[16..20].copy_from_slice(&error.to_le_bytes());
            socket.write_all(&response).unwrap();
            return;
        }
        _ => {}
    }
    std::fs::create_dir(dir).unwrap();
    let files = Directory(dir.into());
    let size = if behaviour == Behaviour::Small {
        4096
    } else {
        DATA
    };
    let mut rings = ["request", "response", "event"].map(|ring| Ring::create(dir, ring, size));
    for (index, ring) in rings.iter().enumerate() {
        let at = 40 + 4096 * index;
        response[at..at + ring.prefix.len()].copy_from_slice(ring.prefix.as_bytes());
    }
    socket.write_all(&response).unwrap();
    let [requests, responses, _] = &mut rings;
    let mut left = if let Behaviour::Echo(count) = behaviour {
        count
    } else {
        usize::MAX
    };
    while socket.read_exact(&mut [0u8]).is_ok() {
        if left == 0 {
            break;
        }
        left -= 1;
        let message = requests.take();
        assert_eq!(int(&message, 8) as usize, message.len());
        responses.put(&message, behaviour);
    }
    drop(files);
}

/// Removed with its files at the end.
struct Directory(PathBuf);

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// One ring: positions and semaphore mapped, data by reads and writes of the file.
struct Ring {
    prefix: String,
    header: *const u8,
    data: File,
    at: usize,
}

impl Ring {
    fn create(dir: &str, ring: &str, size: usize) -> Self {
        let prefix = format!("{dir}/qb-{ring}-test");
        let (header, data) = (format!("{prefix}-header"), format!("{prefix}-data"));
        let open = |path: &str| {
            let mut options = OpenOptions::new();
            options
                .read(true)
                .write(true)
                .create_new(true)
                .open(path)
                .unwrap()
        };
        let mut image = vec![0u8; 8252];
        image[8..12].copy_from_slice(&(DATA as u32 / 4).to_le_bytes());
        image[8204] = 1;
        image[8216] = 0x80;
        let mut file = open(&header);
        file.write_all(&image).unwrap();
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping of a file of this test, at an address the kernel chooses; never
        // unmapped.
        let header = unsafe {
            mmap(
                std::ptr::null_mut(),
                12288,
                access,
                MapFlags::SHARED,
                &file,
                0,
            )
        };
        let data = open(&data);
        data.set_len(size as u64).unwrap();
        Self {
            prefix,
            header: header.unwrap().cast(),
            data,
            at: 0,
        }
    }

    fn semaphore(&self) -> &AtomicU64 {
        // SAFETY: inside of the 12288 bytes mapped, aligned to 8; the client uses it atomically.
        unsafe { AtomicU64::from_ptr(self.header.add(8208).cast_mut().cast()) }
    }

    fn set(&self, offset: usize, value: usize) {
        // SAFETY: as above; aligned to 4.
        let word = unsafe { AtomicU32::from_ptr(self.header.add(offset).cast_mut().cast()) };
        word.store(value as u32, Ordering::Release);
    }

    /// Bytes at `word`, which may go on at the beginning.
    fn read(&self, word: usize, len: usize) -> Vec<u8> {
        let at = |i: usize| ((4 * word + i) % DATA) as u64;
        let mut bytes = vec![0u8; len];
        for (i, byte) in bytes.iter_mut().enumerate() {
            self.data
                .read_exact_at(std::slice::from_mut(byte), at(i))
                .unwrap();
        }
        bytes
    }

    fn write(&self, word: usize, bytes: &[u8]) {
        for (i, byte) in bytes.iter().enumerate() {
            let at = ((4 * word + i) % DATA) as u64;
            self.data.write_all_at(&[*byte], at).unwrap();
        }
    }

    fn take(&mut self) -> Vec<u8> {
        let before = self.semaphore().fetch_sub(1, Ordering::Acquire);
        assert!(before as u32 > 0, "a byte without a request");
        assert_eq!(self.read(self.at + 1, 4), 0xA1A1_A1A1u32.to_le_bytes());
        let len = int(&self.read(self.at, 4), 0) as usize;
        let message = self.read(self.at + 2, len);
        self.at = (self.at + 2 + len.div_ceil(4)) % (DATA / 4);
        self.set(4, self.at);
        message
    }

    /// The answer to `request`: its payload.
    fn put(&mut self, request: &[u8], behaviour: Behaviour) {
        let id = int(request, 0) + i32::from(behaviour == Behaviour::OtherId);
        let len = request.len() + 8;
        let size = len + usize::from(behaviour == Behaviour::Larger);
        let mut message = vec![0u8; 24];
        message[0..4].copy_from_slice(&id.to_le_bytes());
        message[8..12].copy_from_slice(&(size as i32).to_le_bytes());
        message.extend_from_slice(&request[16..]);
        self.write(self.at + 2, &message);
        self.write(self.at, &(len as u32).to_le_bytes());
        let magic: u32 = if behaviour == Behaviour::NoMagic {
            0xD0D0_D0D0
        } else {
            0xA1A1_A1A1
        };
        self.write(self.at + 1, &magic.to_le_bytes());
        self.at = (self.at + 2 + len.div_ceil(4)) % (DATA / 4);
        self.set(0, self.at);
        self.semaphore().fetch_add(1, Ordering::Release);
        // SAFETY: as in `semaphore`; its lower half.
        let value = unsafe { AtomicU32::from_ptr(self.header.add(8208).cast_mut().cast()) };
        futex::wake(value, futex::Flags::empty(), 1).unwrap();
    }
}
