//! What corosync's libraries answer.

use std::ffi::CStr;
use std::fmt;

use corosync_sys as sys;

/// A failed call (`cs_error_t`). Those that somebody has to tell apart have names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Error {
    /// Not now; the same call may succeed later. Nothing was done.
    TryAgain,
    /// No connection to corosync, or it broke.
    Library,
    /// The handle is not known (any more).
    BadHandle,
    /// No such key.
    NotExist,
    /// Join: this process is a member of the group already.
    Exist,
    /// Send: the membership changed while the parts of a long message were sent.
    Interrupt,
    /// A value has another type or length than asked for.
    InvalidParam,
    /// corosync runs without a quorum provider.
    NoQuorumProvider,
    /// A callback panicked; the handle is of no further use.
    Panicked,
    /// Every other code.
    Other(u32),
}

impl Error {
    /// Turns the return value of a call into a result.
    pub(super) fn check(code: sys::cs_error_t) -> Result<(), Error> {
        match code {
            sys::CS_OK => Ok(()),
            sys::CS_ERR_TRY_AGAIN => Err(Error::TryAgain),
            sys::CS_ERR_LIBRARY => Err(Error::Library),
            sys::CS_ERR_BAD_HANDLE => Err(Error::BadHandle),
            sys::CS_ERR_NOT_EXIST => Err(Error::NotExist),
            sys::CS_ERR_EXIST => Err(Error::Exist),
            sys::CS_ERR_INTERRUPT => Err(Error::Interrupt),
            sys::CS_ERR_INVALID_PARAM => Err(Error::InvalidParam),
            other => Err(Error::Other(other)),
        }
    }

    /// The connection is gone: only a new handle helps.
    pub fn is_lost(self) -> bool {
        matches!(self, Error::Library | Error::BadHandle | Error::Panicked)
    }

    fn code(self) -> Option<sys::cs_error_t> {
        Some(match self {
            Error::TryAgain => sys::CS_ERR_TRY_AGAIN,
            Error::Library => sys::CS_ERR_LIBRARY,
            Error::BadHandle => sys::CS_ERR_BAD_HANDLE,
            Error::NotExist => sys::CS_ERR_NOT_EXIST,
            Error::Exist => sys::CS_ERR_EXIST,
            Error::Interrupt => sys::CS_ERR_INTERRUPT,
            Error::InvalidParam => sys::CS_ERR_INVALID_PARAM,
            Error::Other(code) => code,
            Error::NoQuorumProvider | Error::Panicked => return None,
        })
    }
}

/// The name of the code as in corosync's headers, which is also what the C daemon logs.
impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(code) = self.code() else {
            return f.write_str(match self {
                Error::NoQuorumProvider => "no quorum provider",
                _ => "panic in a callback",
            });
        };
        // SAFETY: takes any number and returns a pointer to a static string.
        let text = unsafe { sys::cs_strerror(code) };
        if text.is_null() {
            return write!(f, "error {code}");
        }
        // SAFETY: not null, static and terminated (above).
        f.write_str(&unsafe { CStr::from_ptr(text) }.to_string_lossy())
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_have_the_names_of_the_headers() {
        assert_eq!(Error::Library.to_string(), "CS_ERR_LIBRARY");
        assert_eq!(Error::TryAgain.to_string(), "CS_ERR_TRY_AGAIN");
        assert_eq!(
            Error::Other(sys::CS_ERR_FAILED_OPERATION).to_string(),
            "CS_ERR_FAILED_OPERATION"
        );
        assert!(!Error::Other(12345).to_string().is_empty());
        assert!(!Error::Panicked.to_string().is_empty());
    }

    #[test]
    fn codes_survive_the_round_trip() {
        for code in 2..=31 {
            let err = Error::check(code).unwrap_err();
            assert_eq!(err.code(), Some(code));
        }
        assert_eq!(Error::check(sys::CS_OK), Ok(()));
    }
}
