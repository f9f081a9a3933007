//! The init of a pid namespace: process 1, which waits for everything that ends in it.
//!
//! It is a puppet that nobody lets go home: it keeps its slot, where it waits for children until
//! there are none, and ends. How the one that matters ended it writes to a descriptor.

use std::arch::global_asm;

// Data words: 0 the child that matters, 4 the descriptor, 8 a wait status.
global_asm!(
    ".pushsection .rodata.ckpt_init,\"a\",@progbits",
    ".balign 16",
    ".globl ckpt_init_begin",
    ".globl ckpt_init_words",
    ".globl ckpt_init_end",
    "ckpt_init_begin:",
    // wait4(-1, &status, __WALL, NULL)
    "2: mov eax, 61",
    "mov rdi, -1",
    "lea rsi, [rip + ckpt_init_words + 8]",
    "mov edx, 0x40000000",
    "xor r10d, r10d",
    "syscall",
    // ECHILD: nobody is left.
    "cmp rax, -10",
    "je 4f",
    "cmp eax, [rip + ckpt_init_words]",
    "jne 2b",
    // write(fd, &status, 4), close(fd)
    "mov eax, 1",
    "mov edi, [rip + ckpt_init_words + 4]",
    "lea rsi, [rip + ckpt_init_words + 8]",
    "mov edx, 4",
    "syscall",
    "mov eax, 3",
    "mov edi, [rip + ckpt_init_words + 4]",
    "syscall",
    "jmp 2b",
    "4: mov eax, 231",
    "xor edi, edi",
    "syscall",
    ".balign 8",
    "ckpt_init_words: .zero 16",
    "ckpt_init_end:",
    ".popsection",
);

// SAFETY: the symbols are defined by the `global_asm!` block above, in read-only data that is never
// written; as bytes they are valid `u8`s.
unsafe extern "C" {
    safe static ckpt_init_begin: u8;
    safe static ckpt_init_words: u8;
    safe static ckpt_init_end: u8;
}

/// The code of an init that says on descriptor `fd` how its child `pid` ended. Position independent,
/// to be run from writable memory.
pub(crate) fn code(pid: i32, fd: i32) -> Vec<u8> {
    let begin = std::ptr::from_ref(&ckpt_init_begin);
    let at = |symbol: &u8| (std::ptr::from_ref(symbol) as usize) - (begin as usize);
    // SAFETY: `begin` and `end` are the first and one-past-last symbols of one section emitted by one
    // `global_asm!` block, so the bytes between are contiguous, initialised and immutable.
    let code = unsafe { std::slice::from_raw_parts(begin, at(&ckpt_init_end)) };
    let words = [pid, fd].into_iter().flat_map(i32::to_le_bytes);
    let (before, after) = code.split_at(at(&ckpt_init_words).min(code.len()));
    before.iter().copied().chain(words).chain(after.iter().copied().skip(8)).collect()
}
