//! `/proc/TID/syscall` (proc_pid_syscall(5)) and `wchan` (proc_pid_wchan(5)).

use crate::ParseError;
use crate::text::{Fields, Place, hex0x};

/// What a task is doing: proc_pid_syscall(5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Syscall {
    /// `running`: on a CPU, so there is nothing to say.
    Running,
    /// `-1 SP PC`: off the CPU and not in a system call (a page fault, a preemption).
    Outside {
        /// Stack pointer.
        sp: u64,
        /// Program counter.
        pc: u64,
    },
    /// In a system call.
    Inside {
        /// Its number.
        nr: i64,
        /// The argument registers, whether the call uses them or not.
        args: [u64; 6],
        /// Stack pointer.
        sp: u64,
        /// Program counter.
        pc: u64,
    },
}

/// Parses `/proc/TID/syscall` (proc_pid_syscall(5)).
///
/// # Errors
/// A line of none of the three forms.
pub fn parse_syscall(text: &[u8]) -> Result<Syscall, ParseError> {
    let text = text.trim_ascii_end();
    if text == b"running" {
        return Ok(Syscall::Running);
    }
    let mut fields = Fields::new(text, Place { file: "syscall", line: 1 });
    let nr: i64 = fields.signed("number")?;
    let first = fields.parse("argument", hex0x)?;
    let second = fields.parse("argument", hex0x)?;
    if fields.rest().is_empty() {
        // A system call number of -1 with arguments is possible (a tracer cancels that way); without, this is
        // the form for a task outside.
        return match nr {
            -1 => Ok(Syscall::Outside { sp: first, pc: second }),
            _ => Err(fields.place.missing("argument")),
        };
    }
    let mut args = [first, second, 0, 0, 0, 0];
    for arg in args.iter_mut().skip(2) {
        *arg = fields.parse("argument", hex0x)?;
    }
    let sp = fields.parse("stack pointer", hex0x)?;
    let pc = fields.parse("program counter", hex0x)?;
    if !fields.rest().is_empty() {
        return Err(fields.place.malformed("tail"));
    }
    Ok(Syscall::Inside { nr, args, sp, pc })
}

/// Parses `/proc/TID/wchan` (proc_pid_wchan(5)): the kernel function the task sleeps in, or `None` (`0`, or
/// nothing) when it does not sleep or the reader may not know.
pub fn parse_wchan(text: &[u8]) -> Option<&[u8]> {
    match text.trim_ascii() {
        b"" | b"0" => None,
        name => Some(name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_forms() {
        assert_eq!(parse_syscall(b"running\n"), Ok(Syscall::Running));
        assert_eq!(parse_syscall(b"-1 0x7ffd 0x7f00\n"), Ok(Syscall::Outside { sp: 0x7ffd, pc: 0x7f00 }));
        assert_eq!(
            parse_syscall(
                b"0 0x3 0x7f0cd6a2c000 0x20000 0x22 0xffffffff 0x0 0x7fff832e2ae8 0x7f0cd6ba82ad\n"
            ),
            Ok(Syscall::Inside {
                nr: 0,
                args: [3, 0x7f0c_d6a2_c000, 0x20000, 0x22, 0xffff_ffff, 0],
                sp: 0x7fff_832e_2ae8,
                pc: 0x7f0c_d6ba_82ad
            })
        );
        assert!(parse_syscall(b"").is_err());
        assert!(parse_syscall(b"1 0x1 0x2").is_err());
        assert!(parse_syscall(b"0 0x3 0x4 0x5 0x6 0x7 0x8 0x9").is_err());
    }

    #[test]
    fn wchan() {
        assert_eq!(parse_wchan(b"0"), None);
        assert_eq!(parse_wchan(b"do_wait"), Some(&b"do_wait"[..]));
    }
}
