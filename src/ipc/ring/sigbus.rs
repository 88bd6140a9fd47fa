//! Survives a client that truncates a file while the server reads or writes its mapping
//! (ipc-transport.md 10, rule 5).
//!
//! Every mapped region stands in a fixed table of atomics. The handler looks the faulting
//! address up: inside a region it puts an anonymous page over the fault and marks the region,
//! whose connection is then closed; anywhere else the old action is restored and the fault
//! repeated, so that SIGBUS stays as fatal as it was.

use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};

use super::layout::PAGE;

/// Regions that can exist at a time; more connections are refused.
pub const MAX_REGIONS: usize = 4096;

struct Slot {
    used: AtomicBool,
    dead: AtomicBool,
    /// 0 while the slot covers nothing.
    start: AtomicUsize,
    len: AtomicUsize,
}

static SLOTS: [Slot; MAX_REGIONS] = [const {
    Slot {
        used: AtomicBool::new(false),
        dead: AtomicBool::new(false),
        start: AtomicUsize::new(0),
        len: AtomicUsize::new(0),
    }
}; MAX_REGIONS];

/// Where the search for a free slot begins.
static HINT: AtomicUsize = AtomicUsize::new(0);

/// The action before ours; read by the handler.
static PREVIOUS: AtomicPtr<libc::sigaction> = AtomicPtr::new(std::ptr::null_mut());

/// A row of the table. Dropping it takes the region out: drop before unmapping.
#[derive(Debug)]
pub struct Registration {
    index: usize,
}

impl Registration {
    /// Enters `[start, start + len)`.
    ///
    /// # Errors
    /// `ENFILE` when [`MAX_REGIONS`] regions exist; what `sigaction` says when the handler cannot
    /// be installed.
    pub fn new(start: usize, len: usize) -> io::Result<Self> {
        install()?;
        let first = HINT.load(Ordering::Relaxed);
        for step in 0..MAX_REGIONS {
            let index = (first + step) % MAX_REGIONS;
            let slot = &SLOTS[index];
            if slot.used.swap(true, Ordering::Acquire) {
                continue;
            }
            HINT.store((index + 1) % MAX_REGIONS, Ordering::Relaxed);
            slot.dead.store(false, Ordering::Relaxed);
            slot.len.store(len, Ordering::Relaxed);
            slot.start.store(start, Ordering::Release);
            return Ok(Self { index });
        }
        Err(io::Error::from_raw_os_error(libc::ENFILE))
    }

    /// Whether a fault was hidden in the region: its content can no longer be believed.
    pub fn is_dead(&self) -> bool {
        SLOTS[self.index].dead.load(Ordering::Relaxed)
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let slot = &SLOTS[self.index];
        slot.start.store(0, Ordering::Release);
        slot.len.store(0, Ordering::Relaxed);
        slot.used.store(false, Ordering::Release);
    }
}

/// The row whose region contains `address`.
fn find(address: usize) -> Option<&'static Slot> {
    SLOTS.iter().find(|slot| {
        let start = slot.start.load(Ordering::Acquire);
        start != 0 && address >= start && address - start < slot.len.load(Ordering::Relaxed)
    })
}

/// Installs the handler once per process.
fn install() -> io::Result<()> {
    static DONE: OnceLock<Option<i32>> = OnceLock::new();
    let failed = DONE.get_or_init(|| {
        let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) =
            on_sigbus;
        // SAFETY: sigaction is plain data for which all zeroes is a valid value.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = handler as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        // SAFETY: as above.
        let mut old: libc::sigaction = unsafe { std::mem::zeroed() };
        // Only asked first, so that the handler finds the old action from its first call on.
        // SAFETY: a null new action makes sigaction a query; `old` is a valid place for it.
        if unsafe { libc::sigaction(libc::SIGBUS, std::ptr::null(), &mut old) } != 0 {
            return io::Error::last_os_error().raw_os_error();
        }
        PREVIOUS.store(Box::into_raw(Box::new(old)), Ordering::Release);
        // SAFETY: `action` is initialised and its handler has the signature of SA_SIGINFO, lives
        // as long as the process and does only what is async-signal-safe (see there).
        if unsafe { libc::sigaction(libc::SIGBUS, &action, std::ptr::null_mut()) } != 0 {
            return io::Error::last_os_error().raw_os_error();
        }
        None
    });
    match failed {
        None => Ok(()),
        Some(errno) => Err(io::Error::from_raw_os_error(*errno)),
    }
}

/// Async-signal-safe: atomics, `mmap`, `sigaction` and `raise` (plain system calls); keeps errno.
extern "C" fn on_sigbus(
    signal: libc::c_int,
    info: *mut libc::siginfo_t,
    _context: *mut libc::c_void,
) {
    // SAFETY: SA_SIGINFO is set, so the kernel passes a valid siginfo.
    let (code, address) = unsafe { ((*info).si_code, (*info).si_addr() as usize) };
    // SAFETY: always a valid pointer to the errno of this thread.
    let errno = unsafe { *libc::__errno_location() };
    let hidden = code == libc::BUS_ADRERR && hide(address);
    if !hidden && code <= 0 {
        // Sent by a process. The old action may be the standard library's, which waits for the
        // fault to come again; so the default it is.
        // SAFETY: both are async-signal-safe. The signal is blocked now and comes on return.
        unsafe {
            libc::signal(signal, libc::SIG_DFL);
            libc::raise(signal);
        }
    } else if !hidden {
        let previous = PREVIOUS.load(Ordering::Acquire);
        // SAFETY: `previous` was made from a Box that is never freed and was stored before the
        // handler was installed. The fault is repeated on return and meets the old action.
        unsafe { libc::sigaction(signal, previous, std::ptr::null_mut()) };
    }
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = errno };
}

/// Puts an anonymous page over a fault inside a region and marks it.
fn hide(address: usize) -> bool {
    let Some(slot) = find(address) else {
        return false;
    };
    slot.dead.store(true, Ordering::Relaxed);
    let page = address & !(PAGE - 1);
    // SAFETY: the page lies inside a region of ours (regions are whole pages), which is only
    // accessed through atomics by the thread that faulted; the kernel replaces it in one step.
    // The region stays mapped until its Registration is gone.
    let mapped = unsafe {
        libc::mmap(
            page as *mut libc::c_void,
            PAGE,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED,
            -1,
            0,
        )
    };
    mapped != libc::MAP_FAILED
}
