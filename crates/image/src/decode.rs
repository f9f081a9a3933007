//! From verified records to the model: one record at a time, in the order the format prescribes.

use zerocopy::FromBytes;

use crate::check::{Fault, Place};
use crate::error::ReadError;
use crate::frame::{Decoded, decode};
use crate::model::{
    Cred, File, FileTable, Fs, Image, Inode, Mm, Object, Process, Sighand, Siginfo, Signal, Thread, Vma,
};
use crate::record::{self, Buffer, Header, HeaderArch, Objref, ObjrefMark, Record, Task, Tree};

/// What must come next.
#[derive(Clone, Copy, Debug)]
enum Expect {
    Header,
    Uts(usize),
    HeaderArch,
    Tree,
    /// OBJREF or TASK.
    Item,
    /// The record OBJREF announced.
    Object(ObjrefMark),
    Vmas(Objref, u32),
    Threads(u32),
}

impl Expect {
    fn name(self) -> &'static str {
        match self {
            Self::Header => "HEADER",
            Self::Uts(_) => "BUFFER",
            Self::HeaderArch => "HEADER_ARCH",
            Self::Tree => "TREE",
            Self::Item => "OBJREF or TASK",
            Self::Object(mark) => record::name_of(mark.objtype).unwrap_or("an object"),
            Self::Vmas(..) => "VMA",
            Self::Threads(_) => "THREAD",
        }
    }
}

/// A record on the wire, its group's sum verified.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Raw<'a> {
    pub(crate) offset: u64,
    pub(crate) number: u32,
    /// What follows `type` and `len`.
    pub(crate) body: &'a [u8],
}

impl<'a> Raw<'a> {
    fn decode<R: Record>(&self) -> Result<Decoded<'a, R>, ReadError> {
        decode(self.body).map_err(|what| self.malformed(what))
    }

    fn malformed(&self, what: &'static str) -> ReadError {
        ReadError::Malformed { offset: self.offset, name: self.name(), what }
    }

    fn name(&self) -> &'static str {
        record::name_of(self.number).unwrap_or("unknown")
    }

    fn array<T: FromBytes>(&self, field: &[u8]) -> Result<Vec<T>, ReadError> {
        let items = field.chunks_exact(size_of::<T>());
        if !items.remainder().is_empty() {
            return Err(self.malformed("a field is no whole number of items"));
        }
        items.map(|item| T::read_from_bytes(item).map_err(|_| self.malformed("an item is cut"))).collect()
    }
}

/// Builds the model and remembers where its parts were, for error messages.
#[derive(Debug)]
pub(crate) struct Decoder {
    image: Image,
    expect: Expect,
    /// As they come: a table is made of them at the end.
    objects: Vec<(Objref, Object)>,
    object_offsets: Vec<(Objref, u64)>,
    process_offsets: Vec<u64>,
}

impl Decoder {
    pub(crate) fn new() -> Self {
        Self {
            image: Image::default(),
            expect: Expect::Header,
            objects: Vec::new(),
            object_offsets: Vec::new(),
            process_offsets: Vec::new(),
        }
    }

    /// Takes the next record.
    pub(crate) fn record(&mut self, raw: Raw<'_>) -> Result<(), ReadError> {
        self.expect = match (self.expect, raw.number) {
            (Expect::Header, Header::TYPE) => {
                self.image.header = raw.decode()?.body;
                Expect::Uts(0)
            }
            (Expect::Uts(nr), Buffer::TYPE) => self.uts(nr, raw)?,
            (Expect::HeaderArch, HeaderArch::TYPE) => {
                self.image.arch = raw.decode()?.body;
                Expect::Tree
            }
            (Expect::Tree, Tree::TYPE) => {
                self.image.tree = raw.decode()?.body;
                Expect::Item
            }
            (Expect::Item, ObjrefMark::TYPE) => self.mark(raw)?,
            (Expect::Item, Task::TYPE) => self.task(raw)?,
            (Expect::Object(mark), number) if number == mark.objtype => self.object(mark.objref, raw)?,
            (Expect::Vmas(objref, left), record::Vma::TYPE) => self.vma(objref, left, raw)?,
            (Expect::Threads(left), record::Thread::TYPE) => self.thread(left, raw)?,
            (expect, _) => {
                let expected = expect.name();
                return Err(ReadError::Unexpected { offset: raw.offset, name: raw.name(), expected });
            }
        };
        Ok(())
    }

    /// The image, once a record that is no metadata comes at `offset`.
    pub(crate) fn finish(mut self, offset: u64, name: &'static str) -> Result<Image, ReadError> {
        if !matches!(self.expect, Expect::Item) {
            return Err(ReadError::Unexpected { offset, name, expected: self.expect.name() });
        }
        self.object_offsets.sort_by_key(|(objref, _)| *objref);
        if let Some([_, (_, offset)]) = self.object_offsets.array_windows().find(|[a, b]| a.0 == b.0) {
            let (offset, what) = (*offset, "the objref is taken");
            return Err(ReadError::Malformed { offset, name: ObjrefMark::NAME, what });
        }
        self.image.objects = std::mem::take(&mut self.objects).into_iter().collect();
        self.image.check().map_err(|fault| self.invalid(fault))?;
        Ok(self.image)
    }

    fn invalid(&self, Fault { place, what }: Fault) -> ReadError {
        let offsets = |objref| {
            let at = self.object_offsets.binary_search_by_key(&objref, |(objref, _)| *objref).ok()?;
            self.object_offsets.get(at).map(|(_, offset)| *offset)
        };
        let (name, offset) = match place {
            Place::Image => (Header::NAME, Some(0)),
            Place::Object(objref) => {
                (self.image.objects.get(&objref).map_or("?", Object::name), offsets(objref))
            }
            Place::Process(index, _) => (Task::NAME, self.process_offsets.get(index).copied()),
            Place::Thread(index, _) => (Task::NAME, self.process_offsets.get(index).copied()),
        };
        ReadError::Invalid { offset: offset.unwrap_or(0), name, place, what }
    }

    fn uts(&mut self, nr: usize, raw: Raw<'_>) -> Result<Expect, ReadError> {
        let Decoded { fields: [bytes, ..], body: Buffer {} } = raw.decode()?;
        if let Some(name) = self.image.uts.get_mut(nr) {
            *name = bytes.to_vec();
        }
        Ok(if nr < 2 { Expect::Uts(nr + 1) } else { Expect::HeaderArch })
    }

    fn mark(&mut self, raw: Raw<'_>) -> Result<Expect, ReadError> {
        let mark: ObjrefMark = raw.decode()?.body;
        if mark.objref <= 0 {
            return Err(raw.malformed("the objref is not positive"));
        }
        self.object_offsets.push((mark.objref, raw.offset));
        Ok(Expect::Object(mark))
    }

    fn task(&mut self, raw: Raw<'_>) -> Result<Expect, ReadError> {
        let task: Task = raw.decode()?.body;
        self.process_offsets.push(raw.offset);
        self.image.processes.push(Process { task, threads: Vec::new() });
        Ok(if task.nr_threads == 0 { Expect::Item } else { Expect::Threads(task.nr_threads) })
    }

    fn thread(&mut self, left: u32, raw: Raw<'_>) -> Result<Expect, ReadError> {
        let Decoded { body: record, fields: [comm, xstate, pending, affinity, levels] } = raw.decode()?;
        let thread = Thread {
            record,
            comm: comm.to_vec(),
            xstate: xstate.to_vec(),
            pending: raw.array::<Siginfo>(pending)?,
            affinity: affinity.to_vec(),
            levels: raw.array(levels)?,
        };
        if let Some(process) = self.image.processes.last_mut() {
            process.threads.push(thread);
        }
        Ok(if left == 1 { Expect::Item } else { Expect::Threads(left - 1) })
    }

    fn vma(&mut self, objref: Objref, left: u32, raw: Raw<'_>) -> Result<Expect, ReadError> {
        let Decoded { body: record, fields: [anon_name, ..] } = raw.decode()?;
        if let Some((_, Object::Mm(mm))) = self.objects.last_mut() {
            mm.vmas.push(Vma { record, anon_name: anon_name.to_vec() });
        }
        Ok(if left == 1 { Expect::Item } else { Expect::Vmas(objref, left - 1) })
    }

    fn object(&mut self, objref: Objref, raw: Raw<'_>) -> Result<Expect, ReadError> {
        let object = object(raw)?;
        let expect = match &object {
            Object::Mm(Mm { record, .. }) if record.nr_vmas > 0 => Expect::Vmas(objref, record.nr_vmas),
            _ => Expect::Item,
        };
        self.objects.push((objref, object));
        Ok(expect)
    }
}

/// Decodes an object's first record.
fn object(raw: Raw<'_>) -> Result<Object, ReadError> {
    Ok(match raw.number {
        record::Mm::TYPE => {
            let Decoded { body: record, fields: [auxv, ..] } = raw.decode()?;
            Object::Mm(Mm { record, auxv: auxv.to_vec(), vmas: Vec::new() })
        }
        record::FileTable::TYPE => {
            let Decoded { body: record::FileTable {}, fields: [descs, ..] } = raw.decode()?;
            Object::Files(FileTable { descs: raw.array(descs)? })
        }
        record::File::TYPE => {
            let Decoded { body: record, fields: [path, build_id, details, locks, ..] } = raw.decode()?;
            let (path, build_id, details) = (path.to_vec(), build_id.to_vec(), details.to_vec());
            Object::File(File { record, path, build_id, details, locks: raw.array(locks)? })
        }
        record::Inode::TYPE => {
            let Decoded { body: record, fields: [path, details, ..] } = raw.decode()?;
            Object::Inode(Inode { record, path: path.to_vec(), details: details.to_vec() })
        }
        record::Fs::TYPE => {
            let Decoded { body: record, fields: [cwd, root, ..] } = raw.decode()?;
            Object::Fs(Fs { record, cwd: cwd.to_vec(), root: root.to_vec() })
        }
        record::Sighand::TYPE => {
            let Decoded { body: record::Sighand {}, fields: [actions, ..] } = raw.decode()?;
            Object::Sighand(Sighand { actions: raw.array(actions)? })
        }
        record::Signal::TYPE => {
            let Decoded { body: record, fields: [pending, timers, ..] } = raw.decode()?;
            let (pending, timers) = (raw.array(pending)?, raw.array(timers)?);
            Object::Signal(Box::new(Signal { record, pending, timers }))
        }
        record::Cred::TYPE => {
            let Decoded { body: record, fields: [groups, ..] } = raw.decode()?;
            Object::Cred(Cred { record, groups: raw.array(groups)? })
        }
        _ => return Err(raw.malformed("not an object")),
    })
}
