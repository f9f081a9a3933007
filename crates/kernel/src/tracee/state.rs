//! What a stopped thread is: registers, signal mask, what is pending for it.

use super::{Stopped, ptraced};
use crate::{
    error::{Error, Result},
    sys,
};
use ckpt_image::record::Regs;
use rustix::io::Errno;
use std::sync::atomic::{AtomicUsize, Ordering};
use zerocopy::IntoBytes;

/// Register set of the xsave area (include/uapi/linux/elf.h).
const NT_X86_XSTATE: u64 = 0x202;
/// Largest xsave area we accept from a kernel.
const XSTATE_MAX: usize = 64 << 10;

impl Stopped {
    /// General registers (NT_PRSTATUS).
    pub fn regs(&self) -> Result<Regs> {
        let mut regs = Regs::default();
        let tid = self.tid();
        let set = libc::NT_PRSTATUS as u64;
        let n = ptraced(
            tid,
            "ptrace(PTRACE_GETREGSET, NT_PRSTATUS)",
            sys::ptrace_regset(libc::PTRACE_GETREGSET, tid, set, regs.as_mut_bytes()),
        )?;
        if n == size_of::<Regs>() {
            Ok(regs)
        } else {
            Err(Error::Os { call: "ptrace(PTRACE_GETREGSET) of a 32-bit task", errno: Errno::NOEXEC })
        }
    }

    /// Sets the general registers.
    pub fn set_regs(&mut self, regs: &Regs) -> Result<()> {
        let tid = self.tid();
        let mut regs = *regs;
        let set = libc::NT_PRSTATUS as u64;
        ptraced(
            tid,
            "ptrace(PTRACE_SETREGSET, NT_PRSTATUS)",
            sys::ptrace_regset(libc::PTRACE_SETREGSET, tid, set, regs.as_mut_bytes()),
        )?;
        Ok(())
    }

    /// FPU, SSE, AVX ... state: the xsave area (NT_X86_XSTATE).
    pub fn xstate(&self) -> Result<Vec<u8>> {
        // As long as the first one found: it is the same for all threads of a machine.
        static LEN: AtomicUsize = AtomicUsize::new(XSTATE_MAX);
        let mut area = vec![0; LEN.load(Ordering::Relaxed)];
        let tid = self.tid();
        let set = NT_X86_XSTATE;
        let n = ptraced(
            tid,
            "ptrace(PTRACE_GETREGSET, NT_X86_XSTATE)",
            sys::ptrace_regset(libc::PTRACE_GETREGSET, tid, set, &mut area),
        )?;
        area.truncate(n);
        LEN.store(n, Ordering::Relaxed);
        area.shrink_to_fit();
        Ok(area)
    }

    /// Sets the xsave area.
    pub fn set_xstate(&mut self, area: &[u8]) -> Result<()> {
        let tid = self.tid();
        let mut area = area.to_vec();
        let set = NT_X86_XSTATE;
        ptraced(
            tid,
            "ptrace(PTRACE_SETREGSET, NT_X86_XSTATE)",
            sys::ptrace_regset(libc::PTRACE_SETREGSET, tid, set, &mut area),
        )?;
        Ok(())
    }

    /// Blocked signals.
    pub fn sigmask(&self) -> Result<u64> {
        let mut mask = 0u64;
        let tid = self.tid();
        let call = "ptrace(PTRACE_GETSIGMASK)";
        ptraced(tid, call, sys::ptrace_buffer(libc::PTRACE_GETSIGMASK, tid, 8, &mut mask))?;
        Ok(mask)
    }

    /// Sets the blocked signals.
    pub fn set_sigmask(&mut self, mask: u64) -> Result<()> {
        let mut mask = mask;
        let tid = self.tid();
        let call = "ptrace(PTRACE_SETSIGMASK)";
        ptraced(tid, call, sys::ptrace_buffer(libc::PTRACE_SETSIGMASK, tid, 8, &mut mask))?;
        Ok(())
    }

    /// The pending signals, as raw 128-byte siginfos in queue order: the thread's own or those of
    /// its process (PTRACE_PEEKSIGINFO).
    pub fn pending(&self, shared: bool) -> Result<Vec<[u8; 128]>> {
        #[derive(Default, zerocopy::IntoBytes, zerocopy::Immutable)]
        #[repr(C)]
        struct PeekArgs {
            off: u64,
            flags: u32,
            nr: i32,
        }
        let mut all = Vec::new();
        loop {
            let args = PeekArgs { off: all.len() as u64, flags: u32::from(shared), nr: 16 };
            let mut infos = [[0u8; 128]; 16];
            // SAFETY: `args` is a live ptrace_peeksiginfo_args; the kernel writes at most `nr` =
            // 16 siginfos of 128 bytes to `infos`, exclusively borrowed for the call.
            let result = sys::check(unsafe {
                libc::ptrace(libc::PTRACE_PEEKSIGINFO, self.tid(), &raw const args, &raw mut infos)
            });
            let n = ptraced(self.tid(), "ptrace(PTRACE_PEEKSIGINFO)", result)? as usize;
            all.extend(infos.iter().take(n));
            if n < infos.len() {
                return Ok(all);
            }
        }
    }

    /// The registered rseq(2) area: address, size, signature, flags (PTRACE_GET_RSEQ_CONFIGURATION,
    /// Linux 5.13). Zeros when there is none.
    pub fn rseq(&self) -> Result<(u64, u32, u32, u32)> {
        let mut words = [0u32; 6];
        let tid = self.tid();
        let call = "ptrace(PTRACE_GET_RSEQ_CONFIGURATION)";
        ptraced(tid, call, sys::ptrace_buffer(0x420f, tid, 24, &mut words))?;
        let [low, high, size, sig, flags, _] = words;
        Ok((u64::from(high) << 32 | u64::from(low), size, sig, flags))
    }
}
