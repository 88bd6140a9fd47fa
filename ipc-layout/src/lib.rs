//! Shared memory of the libqb transport: where things stand in the two files of a ring, and the
//! arithmetic of positions (ipc-transport.md 6.1, 6.2, 6.4). Known to the server (the daemon) and
//! to the client (libpmxcfs). Pure.
#![forbid(unsafe_code)]

/// Page size of the only supported platform (ipc-transport.md, head).
pub const PAGE: usize = 4096;

/// Index of the next word to write; changed by the writer only.
pub const WRITE_PT: usize = 0;
/// Index of the next word to read; changed by the reader only.
pub const READ_PT: usize = 4;
/// Size of the data file in words.
pub const WORD_SIZE: usize = 8;
/// Path of the header file, NUL terminated, [`PATH_FIELD`] bytes.
pub const HEADER_PATH: usize = 12;
/// Path of the data file; the client opens what stands here.
pub const DATA_PATH: usize = HEADER_PATH + PATH_FIELD;
/// 1 from the server; a client adds 1 and sends only while it reads 2.
pub const REF_COUNT: usize = DATA_PATH + PATH_FIELD;
/// glibc `sem_t`: low half value, high half number of waiters.
pub const SEMAPHORE: usize = 8208;
/// Third word of the semaphore: [`SEM_SHARED`].
pub const SEM_PRIVATE_WORD: usize = SEMAPHORE + 8;
/// What glibc stores there for a process-shared semaphore.
pub const SEM_SHARED: u32 = 0x80;

/// Bytes of a path field in a header file and in the connection response.
pub const PATH_FIELD: usize = 4096;
/// Bytes of the header file of the request ring (flow control word at the end).
pub const REQUEST_HEADER_FILE: usize = 8252;
/// Bytes of the other two header files.
pub const OTHER_HEADER_FILE: usize = 8248;
/// Bytes of address space for a header file.
pub const HEADER_SPAN: usize = 3 * PAGE;

const _: () = assert!(REQUEST_HEADER_FILE <= HEADER_SPAN && SEMAPHORE % 8 == 0);

/// Magic of a chunk that can be read.
pub const MAGIC_VALID: u32 = 0xA1A1_A1A1;
/// Magic of a chunk that is being written.
pub const MAGIC_ALLOC: u32 = 0xA110_CED0;
/// Magic of a chunk that was read.
pub const MAGIC_CONSUMED: u32 = 0xD0D0_D0D0;

/// Length word and magic word of a chunk.
pub const CHUNK_HEADER_WORDS: u32 = 2;
/// What a chunk needs besides its message, in bytes.
pub const CHUNK_MARGIN: u32 = 12;

/// Bytes of the data file for messages of up to `max_message` bytes.
pub fn data_bytes(max_message: u32) -> usize {
    (max_message as usize + CHUNK_MARGIN as usize + 1).next_multiple_of(PAGE)
}

/// `pos + words`, wrapped. `pos` is below `word_size`, `words` at most `word_size`.
pub fn advance(pos: u32, words: u32, word_size: u32) -> u32 {
    let next = u64::from(pos) + u64::from(words);
    (next % u64::from(word_size)) as u32
}

/// Words that a chunk with a message of `len` bytes takes.
pub fn chunk_words(len: u32) -> u32 {
    CHUNK_HEADER_WORDS + len.div_ceil(4)
}

/// Free words of a ring; `taken` says whether the semaphore is above 0, which tells full from
/// empty when both positions are equal. Positions are below `word_size`.
pub fn free_words(write: u32, read: u32, word_size: u32, taken: bool) -> u32 {
    match write.cmp(&read) {
        std::cmp::Ordering::Greater => read + (word_size - write) - 1,
        std::cmp::Ordering::Less => read - write - 1,
        std::cmp::Ordering::Equal if taken => 0,
        std::cmp::Ordering::Equal => word_size,
    }
}

/// Whether a message of `len` bytes fits into `free` words.
pub fn fits(free: u32, len: u32) -> bool {
    4 * u64::from(free) >= u64::from(len) + u64::from(CHUNK_MARGIN)
}

/// The first content of a header file: everything zero but word_size, the paths, ref_count and
/// the kind of the semaphore. Paths are shorter than [`PATH_FIELD`].
pub fn header_image(file_len: usize, word_size: u32, header: &str, data: &str) -> Vec<u8> {
    let mut image = vec![0u8; file_len];
    image[WORD_SIZE..WORD_SIZE + 4].copy_from_slice(&word_size.to_le_bytes());
    for (at, path) in [(HEADER_PATH, header), (DATA_PATH, data)] {
        let path = path.as_bytes();
        debug_assert!(path.len() < PATH_FIELD);
        image[at..at + path.len()].copy_from_slice(path);
    }
    image[REF_COUNT..REF_COUNT + 4].copy_from_slice(&1u32.to_le_bytes());
    image[SEM_PRIVATE_WORD..SEM_PRIVATE_WORD + 4].copy_from_slice(&SEM_SHARED.to_le_bytes());
    image
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_of_the_specification() {
        assert_eq!(data_bytes(1_048_576), 1_052_672);
        assert_eq!(data_bytes(12_328), 16_384);
        assert_eq!(data_bytes(0), 4096);
        assert_eq!((DATA_PATH, REF_COUNT, SEMAPHORE % 8), (4108, 8204, 0));
    }

    #[test]
    fn free_space() {
        assert_eq!(free_words(0, 0, 100, false), 100);
        assert_eq!(free_words(7, 7, 100, true), 0);
        assert_eq!(free_words(10, 4, 100, true), 93);
        assert_eq!(free_words(4, 10, 100, true), 5);
        assert_eq!(free_words(99, 0, 100, true), 0);
        // the largest message of an empty ring, ipc-transport.md 6.4
        assert!(fits(263_168, 1_052_660));
        assert!(!fits(263_168, 1_052_661));
    }

    #[test]
    fn positions_wrap() {
        assert_eq!(advance(98, 2, 100), 0);
        assert_eq!(advance(99, 100, 100), 99);
        assert_eq!(chunk_words(0), 2);
        assert_eq!(chunk_words(16), 6);
        assert_eq!(chunk_words(17), 7);
    }

    #[test]
    fn header_image_fields() {
        let image = header_image(REQUEST_HEADER_FILE, 0x40400, "/dev/shm/h", "/dev/shm/d");
        assert_eq!(image.len(), 8252);
        assert_eq!(&image[8..12], &0x40400u32.to_le_bytes());
        assert_eq!(&image[12..23], b"/dev/shm/h\0");
        assert_eq!(&image[4108..4119], b"/dev/shm/d\0");
        assert_eq!(image[8204], 1);
        assert_eq!(image[8216], 0x80);
        let set = image.iter().filter(|b| **b != 0).count();
        assert_eq!(set, 2 + 10 + 10 + 1 + 1);
    }
}
