//! The two functions of librrd that the daemon needs. The library (and Pango, Cairo, GLib with it)
//! is loaded when the first file is to be made or written, so that it costs nothing at start and
//! machines without it can run the daemon.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString, OsStr, c_char, c_int, c_ulong};
use std::mem::ManuallyDrop;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr;

use libloading::Library;

/// Name of the library: release 1.5 of RRDtool and later.
pub const LIBRARY: &str = "librrd.so.8";

/// `int rrd_create_r(const char *filename, unsigned long pdp_step, time_t last_up, int argc,
/// const char **argv)`
type CreateR = unsafe extern "C" fn(
    *const c_char,
    c_ulong,
    libc::time_t,
    c_int,
    *const *const c_char,
) -> c_int;
/// `int rrd_update_r(const char *filename, const char *_template, int argc, const char **argv)`
type UpdateR =
    unsafe extern "C" fn(*const c_char, *const c_char, c_int, *const *const c_char) -> c_int;
/// `char *rrd_get_error(void)`
type GetError = unsafe extern "C" fn() -> *const c_char;
/// `void rrd_clear_error(void)`
type ClearError = unsafe extern "C" fn();

/// Why librrd did not do it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RrdError {
    /// The library cannot be used on this machine.
    #[error("{0}")]
    Load(String),
    /// What librrd says.
    #[error("{0}")]
    Librrd(String),
    /// A name or text with a NUL inside.
    #[error("NUL in an argument")]
    Nul,
}

impl RrdError {
    /// Another process has the file locked, and librrd changed nothing.
    pub fn is_locked(&self) -> bool {
        matches!(self, RrdError::Librrd(text) if text.starts_with("could not lock RRD"))
    }
}

/// The loaded library.
pub struct Librrd {
    create: CreateR,
    update: UpdateR,
    get_error: GetError,
    clear_error: ClearError,
    /// Never unloaded: GLib cannot be, it leaves thread-specific data behind.
    _library: ManuallyDrop<Library>,
}

impl Librrd {
    /// Loads the library. Takes some tens of milliseconds.
    ///
    /// # Errors
    /// [`RrdError::Load`] with the reason of the dynamic linker.
    pub fn load(name: &str) -> Result<Self, RrdError> {
        let load = |error: libloading::Error| RrdError::Load(error.to_string());
        // SAFETY: initialisers of the library and of those it needs run here. They are those of a
        // Debian package, made to be loaded by any program at any time (Perl's RRDs does it so).
        let library = ManuallyDrop::new(unsafe { Library::new(name) }.map_err(load)?);
        // SAFETY: the types above are those of rrd.h of librrd.so.8; the pointers stay valid
        // because the library is never unloaded. The same for the next three.
        let create = *unsafe { library.get::<CreateR>(b"rrd_create_r\0") }.map_err(load)?;
        // SAFETY: see above.
        let update = *unsafe { library.get::<UpdateR>(b"rrd_update_r\0") }.map_err(load)?;
        // SAFETY: see above.
        let get_error = *unsafe { library.get::<GetError>(b"rrd_get_error\0") }.map_err(load)?;
        // SAFETY: see above.
        let clear_error =
            *unsafe { library.get::<ClearError>(b"rrd_clear_error\0") }.map_err(load)?;
        Ok(Librrd {
            create,
            update,
            get_error,
            clear_error,
            _library: library,
        })
    }

    /// Makes a file, replacing one that exists. `step` in seconds; values before `start` (seconds
    /// since the epoch) are refused later. Mode of the file: 0644, whatever the umask is.
    ///
    /// # Errors
    /// What librrd says; nothing is left behind then.
    pub fn create(
        &self,
        file: &Path,
        step: u32,
        start: i64,
        definitions: &[String],
    ) -> Result<(), RrdError> {
        let file = c_string(file.as_os_str())?;
        let args = definitions
            .iter()
            .map(|text| c_string(OsStr::new(text)))
            .collect::<Result<Vec<_>, _>>()?;
        self.call(&args, |argc, argv| {
            // SAFETY: `file` and the `argc` strings of `argv` are C strings that live during the
            // call; librrd does not keep or change them (const).
            unsafe { (self.create)(file.as_ptr(), c_ulong::from(step), start, argc, argv) }
        })
    }

    /// Writes one value (`<time>:<value>…`) to a file.
    ///
    /// The time must be a number: only then `rrd_update_r` is thread-safe.
    ///
    /// # Errors
    /// What librrd says.
    pub fn update(&self, file: &Path, line: &[u8]) -> Result<(), RrdError> {
        let file = c_string(file.as_os_str())?;
        let args = [c_string(OsStr::from_bytes(line))?];
        self.call(&args, |argc, argv| {
            // SAFETY: as in `create`; a null template means the order of the file.
            unsafe { (self.update)(file.as_ptr(), ptr::null(), argc, argv) }
        })
    }

    /// Calls `function` with `args` as C passes them and fetches the error text if it fails.
    fn call(
        &self,
        args: &[CString],
        function: impl FnOnce(c_int, *const *const c_char) -> c_int,
    ) -> Result<(), RrdError> {
        let mut argv: Vec<*const c_char> = args.iter().map(|arg| arg.as_ptr()).collect();
        // Not counted: for a callee that looks for the end as in `main`.
        argv.push(ptr::null());
        let argc = c_int::try_from(args.len()).expect("a few dozen at most");
        // SAFETY: no arguments; the error text belongs to this thread.
        unsafe { (self.clear_error)() };
        if function(argc, argv.as_ptr()) == 0 {
            return Ok(());
        }
        // SAFETY: no arguments; returns the buffer of this thread, or null without memory.
        let text = unsafe { (self.get_error)() };
        if text.is_null() {
            return Err(RrdError::Librrd("unknown error".to_owned()));
        }
        // SAFETY: a C string that stays until this thread calls librrd again; copied here.
        let text = unsafe { CStr::from_ptr(text) };
        Err(RrdError::Librrd(text.to_string_lossy().into_owned()))
    }
}

impl std::fmt::Debug for Librrd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Librrd").finish_non_exhaustive()
    }
}

fn c_string(text: &OsStr) -> Result<CString, RrdError> {
    CString::new(text.as_bytes()).map_err(|_| RrdError::Nul)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_library_is_an_error_with_a_reason() {
        let error = Librrd::load("librrd-none.so.8").unwrap_err();
        assert!(error.to_string().contains("librrd-none.so.8"), "{error}");
    }
}
