//! What of the machine an image depends on.
//!
//! *Saved*: the xsave components enabled and in use, and the CPUID words by which a program may have
//! chosen its code; node name, clocks and boot id, to be shown. *Refused* at restart: a processor
//! that lacks components in use, or (`--force-cpu`) a feature that was there. A processor with more is welcome: the program goes on without it.
//! *Lost*, with a warning: that clocks since boot go on after a reboot or on another machine.

use crate::{
    advice::Means,
    error::{Error, Result},
    options::Observer,
};
use ckpt_image::{Image, record::HeaderArch};
use ckpt_kernel::{procfs, query};

/// What the processor offers; the rest of the record is the program's.
pub fn processor() -> HeaderArch {
    HeaderArch { xfeatures: query::xfeatures(), cpu: query::cpuid_words(), ..HeaderArch::default() }
}

/// Refuses an image whose register state this processor cannot hold, or that may use instructions
/// it does not have.
pub(crate) fn check_processor(image: &Image, force: bool) -> Result<()> {
    let here = processor();
    let missing = image.arch.xfeatures_used & !here.xfeatures;
    if missing != 0 {
        let what =
            format!("the image uses CPU state (xsave components {missing:#x}) that this machine's CPU lacks");
        return Err(Error::bad_image(what).advice("restart it on a processor with the same features"));
    }
    let lacking = image.arch.lacking(&here);
    if force || lacking.is_empty() {
        return Ok(());
    }
    let what = "the program may use features of the CPU that this machine's lacks";
    Err(Error::bad_image(what)
        .why(lacking.join(", "))
        .advice("restart it on a CPU that has them")
        .or(Means::ForceCpu))
}

/// Which boot of the machine this is: its boot_id as 16 bytes, zero when it cannot be told.
pub(crate) fn boot_id() -> [u8; 16] {
    let text = procfs::read("sys/kernel/random/boot_id").unwrap_or_default();
    let digits: Vec<u8> = text.iter().filter_map(|b| (*b as char).to_digit(16)).map(|d| d as u8).collect();
    let mut id = [0; 16];
    for (byte, pair) in id.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = pair.iter().fold(0, |byte, digit| byte << 4 | digit);
    }
    id
}

/// Warns when this is another boot than that of the image: by how much its times are off.
pub(crate) fn warn_of_reboot(image: &Image, observer: &mut dyn Observer) {
    let (then, now) = (image.header.boot_id, boot_id());
    if then == now || [then, now].contains(&[0; 16]) {
        return;
    }
    let [then, _] = image.header.clocks;
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic).tv_sec.max(0) as u64;
    let off = now.abs_diff(then / 1_000_000_000);
    let way = if then / 1_000_000_000 > now { "late" } else { "early" };
    observer.warn(&format!(
        "the machine was rebooted since the checkpoint, or is another one: absolute CLOCK_MONOTONIC deadlines \
         of the program (TIMER_ABSTIME) come {off} s too {way}"
    ));
}
