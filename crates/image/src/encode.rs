//! The metadata as records: each object once, right before the first process that uses it, after
//! the objects it refers to itself.

use zerocopy::IntoBytes;

use crate::error::WriteError;
use crate::model::{Image, Mm, Object, Process, Thread};
use crate::record::{self, Objref, ObjrefMark};
use crate::writer::{BlockSink, Writer};

impl Image {
    /// Writes all the metadata: HEADER to the last THREAD, in groups. Pages and the tail follow.
    ///
    /// Nothing is written when the image is one a reader would refuse.
    pub fn write<S: BlockSink>(&self, writer: &mut Writer<S>) -> Result<(), WriteError> {
        self.check()?;
        writer.record(&self.header, &[])?;
        for name in &self.uts {
            writer.record(&record::Buffer {}, &[name])?;
        }
        writer.record(&self.arch, &[])?;
        writer.end_group()?;
        writer.record(&self.tree, &[])?;
        let mut encoder = Encoder { image: self, writer, written: vec![false; self.objects.len()] };
        for process in &self.processes {
            encoder.process(process)?;
        }
        writer.end_group()
    }
}

struct Encoder<'a, S: BlockSink> {
    image: &'a Image,
    writer: &'a mut Writer<S>,
    /// Which objects have been, by position.
    written: Vec<bool>,
}

impl<S: BlockSink> Encoder<'_, S> {
    fn process(&mut self, process: &Process) -> Result<(), WriteError> {
        let task = &process.task;
        for objref in [task.sighand, task.signal, task.fs, task.files, task.mm, task.tty] {
            self.object(objref)?;
        }
        for thread in &process.threads {
            self.object(thread.record.cred)?;
        }
        self.writer.record(task, &[])?;
        for thread in &process.threads {
            self.thread(thread)?;
        }
        self.writer.end_group()
    }

    fn thread(&mut self, thread: &Thread) -> Result<(), WriteError> {
        let pending = thread.pending.as_bytes();
        let levels = thread.levels.as_bytes();
        let fields = [&thread.comm, &thread.xstate, pending, &thread.affinity, levels];
        self.writer.record(&thread.record, &fields)
    }

    /// Writes an object unless it has been, its dependencies first.
    fn object(&mut self, objref: Objref) -> Result<(), WriteError> {
        let written = self.image.objects.position(objref).and_then(|at| self.written.get_mut(at));
        let Some((object, written)) = self.image.objects.get(&objref).zip(written) else { return Ok(()) };
        if std::mem::replace(written, true) {
            return Ok(());
        }
        match object {
            Object::Mm(mm) => {
                self.object(mm.record.exe)?;
                mm.vmas.iter().try_for_each(|vma| self.object(vma.record.object))?;
            }
            Object::Files(files) => files.descs.iter().try_for_each(|desc| self.object(desc.file))?,
            Object::File(file) => file.references().try_for_each(|objref| self.object(objref))?,
            _ => {}
        }
        self.writer.record(&ObjrefMark { objtype: object.objtype(), objref }, &[])?;
        self.body(object)
    }

    fn body(&mut self, object: &Object) -> Result<(), WriteError> {
        let writer = &mut *self.writer;
        match object {
            Object::Mm(mm) => self.mm(mm),
            Object::Files(files) => writer.record(&record::FileTable {}, &[files.descs.as_bytes()]),
            Object::File(file) => {
                let locks = file.locks.as_bytes();
                writer.record(&file.record, &[&file.path, &file.build_id, &file.details, locks])
            }
            Object::Inode(inode) => writer.record(&inode.record, &[&inode.path, &inode.details]),
            Object::Fs(fs) => writer.record(&fs.record, &[&fs.cwd, &fs.root]),
            Object::Sighand(sighand) => writer.record(&record::Sighand {}, &[sighand.actions.as_bytes()]),
            Object::Signal(signal) => {
                writer.record(&signal.record, &[signal.pending.as_bytes(), signal.timers.as_bytes()])
            }
            Object::Cred(cred) => writer.record(&cred.record, &[cred.groups.as_bytes()]),
        }
    }

    fn mm(&mut self, mm: &Mm) -> Result<(), WriteError> {
        self.writer.record(&mm.record, &[&mm.auxv])?;
        mm.vmas.iter().try_for_each(|vma| self.writer.record(&vma.record, &[&vma.anon_name]))
    }
}
