//! The only foreign code a task ever executes: the *stub* and the *bay loop*.
//!
//! Both are position-independent byte images that carry their data words behind the code and
//! address them relative to RIP. Both begin by blocking signals, end by *parking* (tgkill of
//! themselves with a signal that is ignored when nobody traces them) and, if nobody caught the
//! park, go *home*: they put flags, stack pointer, signal mask and general registers back and
//! jump to where the task was. So a task whose coordinator dies goes on by itself. Home touches
//! neither FP state nor stack nor red zone, and does not use rt_sigreturn, which would reset the
//! kernel's restart_block.

use std::arch::global_asm;

/// Bytes of one call descriptor: nr, six arguments, result, flags, how often again with a first argument that is one more.
pub const DESC_SIZE: usize = 80;
/// Descriptor flag: a failure does not end the program.
pub const MAY_FAIL: u64 = 1 << 8;
/// Descriptor flag: a result of zero makes the task exit_group (forked twins).
pub const EXIT_IF_ZERO: u64 = 1 << 9;

/// Marks stub and bays in a task's memory.
pub const MAGIC: u64 = 0x746f_6c73_7470_6b63; // "ckptslot"

// Data words shared by stub and bay, in order from the label `words`. Keep in step with `Words`.
//   0 magic   8 block   16 mask   24 tgid   32 tid   40 sig   48 flags   56 rsp   64 rip
//  72 rax 80 rbx 88 rcx 96 rdx 104 rsi 112 rdi 120 rbp 128 r8 ... 184 r15
// 192 descs / nr   200 count / arg0   208 failed / arg1   216.. args
macro_rules! image {
    ($name:literal, $body:literal, $extra:literal) => {
        concat!(
            ".pushsection .rodata.ckpt_",
            $name,
            ",\"a\",@progbits\n",
            ".balign 16\n",
            ".globl ckpt_",
            $name,
            "_begin\n.globl ckpt_",
            $name,
            "_parked\n",
            ".globl ckpt_",
            $name,
            "_settled\n.globl ckpt_",
            $name,
            "_syscall\n",
            ".globl ckpt_",
            $name,
            "_words\n.globl ckpt_",
            $name,
            "_end\n",
            "ckpt_",
            $name,
            "_begin:\n",
            // Block everything but the park signal.
            "mov eax, 14\nmov edi, 2\nlea rsi, [rip + 7f + 8]\nmov edx, 0\nmov r10d, 8\nsyscall\n",
            $body,
            // Park.
            "5: mov eax, 234\nmov rdi, [rip + 7f + 24]\nmov rsi, [rip + 7f + 32]\nmov rdx, [rip + 7f + 40]\n",
            "ckpt_",
            $name,
            "_syscall: syscall\n",
            "ckpt_",
            $name,
            "_parked:\n",
            // Home.
            "lea rsp, [rip + 7f + 48]\npopfq\nmov rsp, [rip + 7f + 56]\n",
            "ckpt_",
            $name,
            "_settled:\n",
            "mov eax, 14\nmov edi, 2\nlea rsi, [rip + 7f + 16]\nmov edx, 0\nmov r10d, 8\nsyscall\n",
            "mov rax, [rip + 7f + 72]\nmov rbx, [rip + 7f + 80]\nmov rcx, [rip + 7f + 88]\n",
            "mov rdx, [rip + 7f + 96]\nmov rsi, [rip + 7f + 104]\nmov rdi, [rip + 7f + 112]\n",
            "mov rbp, [rip + 7f + 120]\nmov r8, [rip + 7f + 128]\nmov r9, [rip + 7f + 136]\n",
            "mov r10, [rip + 7f + 144]\nmov r11, [rip + 7f + 152]\nmov r12, [rip + 7f + 160]\n",
            "mov r13, [rip + 7f + 168]\nmov r14, [rip + 7f + 176]\nmov r15, [rip + 7f + 184]\n",
            "jmp qword ptr [rip + 7f + 64]\n",
            ".balign 8\n",
            "ckpt_",
            $name,
            "_words: 7: .zero 192\n",
            $extra,
            "ckpt_",
            $name,
            "_end:\n",
            ".popsection\n",
        )
    };
}

global_asm!(image!(
    "stub",
    // One system call from the words; its result stays in rbx.
    "mov rax, [rip + 7f + 192]\nmov rdi, [rip + 7f + 200]\nmov rsi, [rip + 7f + 208]\nmov rdx, [rip + 7f + 216]\nmov r10, [rip + 7f + 224]\nmov r8, [rip + 7f + 232]\nmov r9, [rip + 7f + 240]\nsyscall\nmov rbx, rax\n",
    ".zero 56\n"
));

global_asm!(image!(
    "bay",
    // r12 the descriptor, r13 how many are left, r15 the first one.
    "mov r15, [rip + 7f + 192]\nmov r13, [rip + 7f + 200]\nmov r12, r15\nmov qword ptr [rip + 7f + 208], 0\n\
     2: test r13, r13\njz 5f\nmov r14, [r12 + 64]\n\
     mov rdi, [r12 + 8]\nbt r14, 0\njnc 3f\nmov rdi, [r15 + rdi + 56]\n3:\n\
     mov rsi, [r12 + 16]\nbt r14, 1\njnc 3f\nmov rsi, [r15 + rsi + 56]\n3:\n\
     mov rdx, [r12 + 24]\nbt r14, 2\njnc 3f\nmov rdx, [r15 + rdx + 56]\n3:\n\
     mov r10, [r12 + 32]\nbt r14, 3\njnc 3f\nmov r10, [r15 + r10 + 56]\n3:\n\
     mov r8, [r12 + 40]\nbt r14, 4\njnc 3f\nmov r8, [r15 + r8 + 56]\n3:\n\
     mov r9, [r12 + 48]\nbt r14, 5\njnc 3f\nmov r9, [r15 + r9 + 56]\n3:\n\
     mov rax, [r12]\nsyscall\nmov [r12 + 56], rax\n\
     cmp rax, -4095\njb 3f\nbt r14, 8\njc 4f\nmov [rip + 7f + 208], r12\njmp 5f\n\
     3: test rax, rax\njnz 4f\nbt r14, 9\njnc 4f\nmov eax, 231\nmov edi, 0\nsyscall\n\
     4: cmp qword ptr [r12 + 72], 0\njz 4f\ndec qword ptr [r12 + 72]\ninc qword ptr [r12 + 8]\njmp 2b\n\
     4: add r12, 80\ndec r13\njmp 2b\n",
    ".zero 24\n"
));

/// One of the two code images.
#[derive(Clone, Copy, Debug)]
pub struct Code {
    /// Code and zeroed data words.
    pub bytes: &'static [u8],
    /// Offset of RIP when parked, which is also the start of home.
    pub parked: u64,
    /// Offset of home after flags and stack pointer are back.
    pub settled: u64,
    /// Offset of a `syscall` instruction.
    pub syscall: u64,
    /// Offset of the data words.
    pub words: usize,
}

macro_rules! symbols {
    ($($name:ident)*) => {
        // SAFETY: the symbols are defined by the `global_asm!` blocks above, in read-only data
        // that is never written; as bytes they are valid `u8`s.
        unsafe extern "C" { $(safe static $name: u8;)* }
    };
}
symbols! {
    ckpt_stub_begin ckpt_stub_parked ckpt_stub_settled ckpt_stub_syscall ckpt_stub_words ckpt_stub_end
    ckpt_bay_begin ckpt_bay_parked ckpt_bay_settled ckpt_bay_syscall ckpt_bay_words ckpt_bay_end
}

/// Builds a [`Code`] from its symbols.
fn between(begin: &'static u8, parked: &u8, settled: &u8, syscall: &u8, words: &u8, end: &u8) -> Code {
    let at = |symbol: &u8| (std::ptr::from_ref(symbol) as usize) - (std::ptr::from_ref(begin) as usize);
    // SAFETY: `begin` and `end` are the first and one-past-last symbols of one section emitted by
    // one `global_asm!` block, so the bytes between are contiguous, initialised and immutable.
    let bytes = unsafe { std::slice::from_raw_parts(std::ptr::from_ref(begin), at(end)) };
    Code {
        bytes,
        parked: at(parked) as u64,
        settled: at(settled) as u64,
        syscall: at(syscall) as u64,
        words: at(words),
    }
}

/// The bootstrap stub: one system call.
pub fn stub() -> Code {
    between(
        &ckpt_stub_begin,
        &ckpt_stub_parked,
        &ckpt_stub_settled,
        &ckpt_stub_syscall,
        &ckpt_stub_words,
        &ckpt_stub_end,
    )
}

/// The bay loop: an array of system calls.
pub fn bay() -> Code {
    between(
        &ckpt_bay_begin,
        &ckpt_bay_parked,
        &ckpt_bay_settled,
        &ckpt_bay_syscall,
        &ckpt_bay_words,
        &ckpt_bay_end,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_whole() {
        for code in [stub(), bay()] {
            assert!(code.bytes.len() < 0x300, "{}", code.bytes.len());
            assert_eq!(code.words % 8, 0);
            assert!((code.parked as usize) < code.words && code.parked < code.settled);
            assert_eq!(&code.bytes[code.syscall as usize..code.syscall as usize + 2], &[0x0f, 0x05]);
            assert!(code.bytes[code.words..].iter().all(|&b| b == 0));
        }
    }
}
