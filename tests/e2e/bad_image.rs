//! `restart` on damaged, foreign and outdated images: an error line, exit 5, nothing created.

use std::ffi::OsString;
use std::path::Path;

use anyhow::{Context as _, Result};
use ckpt_tests::context::Context;
use ckpt_tests::image::{ARCH_OFFSET, BOOT_ID, CPU_WORDS, HEADER_ARCH, boundaries, record_of_type, reseal};
use ckpt_tests::sys::random_below;
use ckpt_tests::target::Target;

use crate::common::{Program, Test, ensure, expect_line, nothing_runs_in};
use crate::errors::private_program;

pub(crate) const TESTS: &[Test] = &[
    ("not_an_image", not_an_image),
    ("truncated", truncated),
    ("bit_flips", bit_flips),
    ("wrong_architecture", wrong_architecture),
    ("missing_cpu_features", missing_cpu_features),
    ("another_boot", another_boot),
    ("hostile", hostile),
    ("pid_taken", pid_taken),
    ("restart_twice", restart_twice),
    ("changed_exe", changed_exe),
    ("changed_library", changed_library),
    ("missing_library", missing_library),
    ("missing_open_file", missing_open_file),
];

/// The image `bytes` is refused with exit 5.
fn refused(ctx: &Context, program: &Program, bytes: &[u8], words: &[&str]) -> Result<()> {
    let path = program.path("damaged");
    let _ = std::fs::remove_file(&path); // ext4 writes a file out at once that was truncated and written anew
    std::fs::write(&path, bytes)?;
    let outcome = ctx.run("restart", &["-W", "-i"]).arg(&path).finish()?;
    expect_line(&outcome, "restart", &[5], words)?;
    ensure(outcome.stdout.is_empty(), "restart printed a pid")?;
    nothing_runs_in(program.dir.path())
}

fn not_an_image(ctx: &Context) -> Result<()> {
    let mut program = Program::start(ctx, "exits", &["0"])?;
    program.target.kill();
    let garbage: Vec<u8> = (0..100_000).map(|_| random_below(256) as u8).collect();
    for bytes in [&[][..], &[0], &[0; 4096], b"\x7fELF and so on", &garbage] {
        refused(ctx, &program, bytes, &[])?;
        let outcome = ctx.run("info", &["--verify"]).arg(program.path("damaged")).finish()?;
        outcome.expect_code(5).context("ckptinfo --verify")?;
        let outcome = ctx.run("restart", &["-W"]).stdin_bytes(bytes.to_vec()).finish()?;
        expect_line(&outcome, "restart", &[5], &[])?;
    }
    let outcome = ctx.run("restart", &["-i", "/no/such/image"]).finish()?;
    expect_line(&outcome, "restart", &[1], &["/no/such/image"])?;
    let outcome = ctx.run("restart", &["-i"]).arg(program.dir.path()).finish()?;
    expect_line(&outcome, "restart", &[1, 5], &[])
}

fn truncated(ctx: &Context) -> Result<()> {
    let mut program = Program::start(ctx, "exits", &["7"])?;
    let image = program.save_and_kill(ctx)?;
    let whole = std::fs::read(&image)?;
    let records = boundaries(&whole)?;
    ensure(records.len() > 20, format!("only {} records", records.len()))?;
    let (_, inner) = records.split_last().context("no records")?;
    for at in inner {
        refused(ctx, &program, &whole[..*at], &[]).with_context(|| format!("cut at record boundary {at}"))?;
    }
    for _ in 0..100 {
        let at = random_below(whole.len() as u64) as usize;
        refused(ctx, &program, &whole[..at], &[])
            .with_context(|| format!("cut at byte {at} of {}", whole.len()))?;
    }
    for pipe_cut in [1, whole.len() / 2, whole.len() - 1] {
        let outcome = ctx.run("restart", &["-W"]).stdin_bytes(whole[..pipe_cut].to_vec()).finish()?;
        expect_line(&outcome, "restart", &[5], &[]).with_context(|| format!("a pipe cut at {pipe_cut}"))?;
        nothing_runs_in(program.dir.path())?;
    }
    program.back_from(ctx, &image).context("and the whole image still works")?;
    program.ends_with(7)
}

fn bit_flips(ctx: &Context) -> Result<()> {
    let mut program = Program::start(ctx, "exits", &["7"])?;
    let image = program.save_and_kill(ctx)?;
    let mut bytes = std::fs::read(&image)?;
    for round in 0..ctx.flips {
        // Half of them among the records, which are a small part of the image.
        let span = if round % 2 == 0 { bytes.len() } else { bytes.len().min(8192) };
        let (at, bit) = (random_below(span as u64) as usize, 1u8 << random_below(8));
        bytes[at] ^= bit;
        refused(ctx, &program, &bytes, &[])
            .with_context(|| format!("bit {bit:#x} of byte {at} of {} flipped", bytes.len()))?;
        bytes[at] ^= bit;
    }
    program.back_from(ctx, &image).context("and the sound image still works")?;
    program.ends_with(7)
}

fn wrong_architecture(ctx: &Context) -> Result<()> {
    let mut program = Program::start(ctx, "exits", &["7"])?;
    let image = program.save_and_kill(ctx)?;
    let mut bytes = std::fs::read(&image)?;
    bytes[ARCH_OFFSET..ARCH_OFFSET + 4].copy_from_slice(&183u32.to_le_bytes()); // EM_AARCH64
    refused(ctx, &program, &bytes, &["machine"])
}

/// An image that uses a register state or instructions this machine does not know, with all sums right.
fn missing_cpu_features(ctx: &Context) -> Result<()> {
    let mut program = Program::start(ctx, "exits", &["7"])?;
    let image = program.save_and_kill(ctx)?;
    let mut bytes = std::fs::read(&image)?;
    let header = record_of_type(&bytes, HEADER_ARCH)?;
    for word in [8, 40] {
        bytes[header + word + 5] |= 1; // bit 40 of xfeatures and of xfeatures_used
    }
    reseal(&mut bytes)?;
    refused(ctx, &program, &bytes, &["processor"])?;
    // CPUID leaf 7.1 eax bit 7 and leaf 0x80000001 ecx bit 16: no processor has had both.
    let mut bytes = std::fs::read(&image)?;
    bytes[header + CPU_WORDS + 5 * 4] |= 1 << 7;
    bytes[header + CPU_WORDS + 8 * 4 + 2] |= 1;
    reseal(&mut bytes)?;
    let intel = std::fs::read_to_string("/proc/cpuinfo")?.contains("GenuineIntel");
    let name = if intel { "fma4" } else { "cmpccxadd" };
    refused(ctx, &program, &bytes, &[name, "--force-cpu"])?;
    ctx.run("restart", &["-W", "--force-cpu", "-i"]).arg(program.path("damaged")).finish()?.expect_code(0)?;
    program.adopt()?;
    program.ends_with(7)
}

/// An image of another boot is restarted, with one line about its clocks; one of this boot without.
fn another_boot(ctx: &Context) -> Result<()> {
    let mut program = Program::start(ctx, "exits", &["7"])?;
    let image = program.save_and_kill(ctx)?;
    let outcome = program.back_from(ctx, &image)?;
    ensure(outcome.stderr.is_empty(), format!("of the same boot: {}", outcome.stderr))?;
    program.target.kill();
    let mut bytes = std::fs::read(&image)?;
    bytes[BOOT_ID] ^= 1;
    reseal(&mut bytes)?;
    std::fs::write(&image, &bytes)?;
    let outcome = program.back_from(ctx, &image)?;
    let line = outcome.stderr.trim_end();
    ensure(line.starts_with("restart: warning: ") && line.contains("rebooted"), format!("it said: {line}"))?;
    ensure(!line.contains('\n'), format!("more than a line: {line}"))?;
    program.ends_with(7)
}

/// Damage under right sums, as somebody who means it would do: any error or none, but no panic, no hang, nothing left.
fn hostile(ctx: &Context) -> Result<()> {
    let mut program = Program::start(ctx, "exits", &["7"])?;
    let image = program.save_and_kill(ctx)?;
    let sound = std::fs::read(&image)?;
    let metadata = boundaries(&sound)?.into_iter().rfind(|at| *at < 16384).context("no records")?;
    let path = program.path("hostile");
    for _ in 0..ctx.flips / 3 {
        let (at, bit) = (24 + random_below(metadata as u64 - 24) as usize, 1u8 << random_below(8));
        let mut bytes = sound.clone();
        bytes[at] ^= bit;
        let context = || format!("bit {bit:#x} of byte {at} flipped under right sums");
        if reseal(&mut bytes).is_err() {
            continue; // the framing itself is broken: that is bit_flips
        }
        std::fs::write(&path, &bytes)?;
        let outcome = ctx.run("restart", &["-W", "-i"]).arg(&path).finish().with_context(context)?;
        match outcome.status.code() {
            Some(0) => {
                let pid: i32 =
                    String::from_utf8_lossy(&outcome.stdout).trim().parse().with_context(context)?;
                drop(Target::adopt(pid)); // and kills it
            }
            Some(1 | 3 | 4 | 5) => {
                expect_line(&outcome, "restart", &[1, 3, 4, 5], &[]).with_context(context)?;
                nothing_runs_in(program.dir.path()).with_context(context)?;
            }
            _ => anyhow::bail!("{}: {} {}", context(), outcome.status, outcome.stderr),
        }
    }
    Ok(())
}

fn pid_taken(ctx: &Context) -> Result<()> {
    let mut program = Program::start(ctx, "exits", &["7"])?;
    let image = program.path("image");
    ctx.run("checkpoint", &["-o"]).arg(&image).arg(program.pid()).finish()?.expect_code(0)?;
    let outcome = ctx.run("restart", &["-W", "-i"]).arg(&image).finish()?;
    expect_line(&outcome, "restart", &[1], &[&program.pid(), "exits"])?;
    program.unharmed()?;
    program.ends_with(7)
}

fn restart_twice(ctx: &Context) -> Result<()> {
    let mut program = Program::start(ctx, "exits", &["7"])?;
    let image = program.save_and_kill(ctx)?;
    program.back_from(ctx, &image)?;
    let outcome = ctx.run("restart", &["-W", "-i"]).arg(&image).finish()?;
    expect_line(&outcome, "restart", &[1], &[&program.pid()])?;
    program.unharmed()?;
    program.ends_with(7)?;
    std::fs::remove_file(program.path("go"))?;
    program.back_from(ctx, &image).context("an image can be used again")?;
    program.ends_with(7)
}

/// A program with a library of its own is checkpointed, `change` is applied, the restart must name `word`.
fn changed(ctx: &Context, word: &str, change: fn(&Path) -> Result<()>, forced: bool) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let argv: Vec<OsString> = vec![private_program(ctx, dir.path())?.into(), "7".into()];
    let mut program = Program::start_argv(&argv, dir, None)?;
    let image = program.save_and_kill(ctx)?;
    change(program.dir.path())?;
    let outcome = ctx.run("restart", &["-W", "-i"]).arg(&image).finish()?;
    expect_line(&outcome, "restart", &[1, 3], &[word])?;
    nothing_runs_in(program.dir.path())?;
    if forced {
        ctx.run("restart", &["-W", "--force-files", "-i"]).arg(&image).finish()?.expect_code(0)?;
        program.adopt()?;
        program.ends_with(7)?;
    }
    Ok(())
}

/// Changes a file's size and time of modification, as another build of it would.
fn rebuilt(path: &Path) -> Result<()> {
    let mut file = std::fs::OpenOptions::new().append(true).open(path)?;
    std::io::Write::write_all(&mut file, b"another build")?;
    file.set_modified(std::time::SystemTime::now() + std::time::Duration::from_secs(5))?;
    Ok(())
}

fn changed_exe(ctx: &Context) -> Result<()> {
    changed(ctx, "/program", |dir| rebuilt(&dir.join("program")), true)
}

fn changed_library(ctx: &Context) -> Result<()> {
    changed(ctx, "/libextra.so", |dir| rebuilt(&dir.join("libextra.so")), true)
}

fn missing_library(ctx: &Context) -> Result<()> {
    changed(ctx, "/libextra.so", |dir| Ok(std::fs::remove_file(dir.join("libextra.so"))?), false)
}

fn missing_open_file(ctx: &Context) -> Result<()> {
    changed(ctx, "/err", |dir| Ok(std::fs::remove_file(dir.join("err"))?), false)
}
