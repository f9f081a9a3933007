//! `criu cpuinfo dump|check`: what this processor offers, as a file beside images, and whether another offers it, too.
//!
//! The record is that of the image's head; a restore compares that anyway. This asks before there is an image.

use crate::{
    dump::check_directories,
    failure::{Failure, Outcome},
    log::Log,
    options::Options,
    say,
};
use ckpt_image::record::HeaderArch;

/// The name of the file in the directory of images.
pub const FILE: &str = "cpuinfo.img";

/// Writes what this processor offers.
pub fn dump(options: &Options, log: &Log) -> Outcome {
    check_directories(options)?;
    let path = options.images_dir.join(FILE);
    let written = std::fs::write(&path, ckpt_engine::processor().to_file());
    written.map_err(|cause| Failure::os("cpuinfo", format!("write {}", path.display()), cause))?;
    log.info(format!("Wrote what this processor offers to {}", path.display()));
    Ok(())
}

/// Compares what was written with this processor, as far as `--cpu-cap` says.
pub fn check(options: &Options, log: &Log) -> Outcome {
    check_directories(options)?;
    let path = options.images_dir.join(FILE);
    let bytes = std::fs::read(&path).map_err(|cause| {
        Failure::failed("cpuinfo", format!("{}: {cause}; criu cpuinfo dump writes it", path.display()))
    })?;
    let there = HeaderArch::from_file(&bytes)
        .map_err(|why| Failure::failed("cpuinfo", format!("{}: {why}", path.display())))?;
    let here = ckpt_engine::processor();
    let mut lacking = Vec::new();
    if options.cpu_cap.features {
        let instructions = HeaderArch { xfeatures: here.xfeatures, ..there };
        lacking.extend(instructions.lacking(&here).into_iter().map(str::to_owned));
    }
    let state = there.xfeatures & !here.xfeatures;
    if options.cpu_cap.state && state != 0 {
        lacking.push(format!("register state (xsave components {state:#x})"));
    }
    if !lacking.is_empty() {
        let text = format!(
            "this processor lacks {} of the one {} was written on; restore on one that has them",
            lacking.join(", "),
            path.display()
        );
        return Err(Failure::failed("cpuinfo", text));
    }
    log.info("This processor has all that was asked for");
    say("Looks good.\n");
    Ok(())
}
