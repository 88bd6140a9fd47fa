//! Payloads of the requests (ipc-messages.md 2 to 4), made of what the helpers are given.
#![forbid(unsafe_code)]

use rustix::io::Errno;

use crate::messages::{
    PMXCFS_MAX_LOG_NAME, PMXCFS_MAX_PROPERTIES, PMXCFS_MAX_STATUS_VALUE, PMXCFS_NAME_SIZE,
};

/// A key or node name in its field.
///
/// # Errors
/// `ENAMETOOLONG` for more than 255 bytes.
fn name(text: &[u8]) -> Result<[u8; 256], Errno> {
    let mut field = [0u8; 256];
    if text.len() >= PMXCFS_NAME_SIZE as usize {
        return Err(Errno::NAMETOOLONG);
    }
    field[..text.len()].copy_from_slice(text);
    Ok(field)
}

fn c_string(out: &mut Vec<u8>, text: &[u8]) {
    out.extend_from_slice(text);
    out.push(0);
}

/// SET_STATUS.
///
/// # Errors
/// `ENAMETOOLONG`; `EFBIG` for more than 32768 bytes, as the daemon would say.
pub fn set_status(key: &[u8], value: &[u8]) -> Result<Vec<u8>, Errno> {
    if value.len() > PMXCFS_MAX_STATUS_VALUE as usize {
        return Err(Errno::FBIG);
    }
    let mut out = name(key)?.to_vec();
    out.extend_from_slice(value);
    Ok(out)
}

/// GET_STATUS.
///
/// # Errors
/// `ENAMETOOLONG`.
pub fn get_status(key: &[u8], node: &[u8]) -> Result<Vec<u8>, Errno> {
    Ok([name(key)?, name(node)?].concat())
}

/// GET_CONFIG, VERIFY_TOKEN: one string.
pub fn string(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len() + 1);
    c_string(&mut out, text);
    out
}

/// LOG_CLUSTER_MSG.
///
/// # Errors
/// `EINVAL` for a priority above 7; `ENAMETOOLONG` for an ident or tag of more than 254 bytes.
pub fn log(priority: u8, ident: &[u8], tag: &[u8], message: &[u8]) -> Result<Vec<u8>, Errno> {
    if priority > 7 {
        return Err(Errno::INVAL);
    }
    let length = |text: &[u8]| {
        u8::try_from(text.len() + 1)
            .ok()
            .filter(|length| u32::from(*length) <= PMXCFS_MAX_LOG_NAME)
            .ok_or(Errno::NAMETOOLONG)
    };
    let mut out = vec![priority, length(ident)?, length(tag)?];
    for text in [ident, tag, message] {
        c_string(&mut out, text);
    }
    Ok(out)
}

/// GET_CLUSTER_LOG.
pub fn cluster_log(max: u32, user: &[u8]) -> Vec<u8> {
    let mut out = max.to_le_bytes().to_vec();
    out.extend_from_slice(&[0; 12]);
    c_string(&mut out, user);
    out
}

/// GET_GUEST_CONFIG_PROPERTY.
pub fn property(vmid: u32, name: &[u8]) -> Vec<u8> {
    let mut out = vmid.to_le_bytes().to_vec();
    c_string(&mut out, name);
    out
}

/// GET_GUEST_CONFIG_PROPERTIES.
///
/// # Errors
/// `EINVAL` for no name or more than 255.
pub fn properties(vmid: u32, names: &[&[u8]]) -> Result<Vec<u8>, Errno> {
    let count = u8::try_from(names.len()).map_err(|_| Errno::INVAL)?;
    if count == 0 || names.len() > PMXCFS_MAX_PROPERTIES as usize {
        return Err(Errno::INVAL);
    }
    let mut out = vmid.to_le_bytes().to_vec();
    out.push(count);
    for name in names {
        c_string(&mut out, name);
    }
    Ok(out)
}

/// VERIFY_TOKEN.
///
/// # Errors
/// `EINVAL` for a newline in it: it would be a line of its own in the token file.
pub fn token(userid: &[u8], secret: &[u8]) -> Result<Vec<u8>, Errno> {
    let mut text = userid.to_vec();
    text.push(b' ');
    text.extend_from_slice(secret);
    if text.contains(&b'\n') {
        return Err(Errno::INVAL);
    }
    Ok(string(&text))
}
