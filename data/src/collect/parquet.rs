//! Parquet files, by the crate's record API: only the wanted columns are read.

use super::{
    Flaw,
    rows::{Picked, Wanted},
};
use crate::document::Body;
use parquet::{
    errors::ParquetError,
    file::{reader::FileReader, serialized_reader::SerializedFileReader},
    record::{
        Field, Row,
        reader::{ReaderIter, TreeBuilder},
    },
    schema::types::{SchemaDescPtr, SchemaDescriptor, Type},
};
use serde_json::{Map, Value};
use std::{
    fs::File,
    io::{Read, Seek, SeekFrom},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

/// A document a row.
pub(super) struct Table {
    reader: SerializedFileReader<File>,
    schema: SchemaDescPtr,
    rows: Option<ReaderIter>,
    next_group: usize,
    row: u64,
    n_rows: u64,
    len_bytes: u64,
    wanted: Wanted,
    /// How many stored bytes the rows so far stand for.
    progress: Arc<AtomicU64>,
}

impl Table {
    pub(super) fn open(
        mut file: File,
        wanted: Wanted,
        progress: Arc<AtomicU64>,
    ) -> Result<Self, Flaw> {
        let len_bytes = whole_length(&mut file).map_err(|reason| Flaw::whole(0, reason))?;
        let opened = guarded(|| SerializedFileReader::new(file));
        let reader = opened.map_err(|reason| Flaw::whole(0, reason))?;
        let metadata = reader.metadata().file_metadata();
        let root = metadata.schema_descr().root_schema();
        let names: Vec<&str> = root.get_fields().iter().map(|field| field.name()).collect();
        wanted
            .check(&names)
            .map_err(|reason| Flaw::whole(0, reason))?;
        let fields = root.get_fields().iter();
        let chosen =
            fields.filter(|field| wanted.is_record() || wanted.find(field.name()).is_some());
        let schema = Type::group_type_builder(root.name())
            .with_fields(chosen.cloned().collect())
            .build()
            .map_err(|error| Flaw::whole(0, broken(&error)))?;
        let n_rows = u64::try_from(metadata.num_rows()).unwrap_or_default();
        Ok(Self {
            schema: Arc::new(SchemaDescriptor::new(Arc::new(schema))),
            reader,
            rows: None,
            next_group: 0,
            row: 0,
            n_rows,
            len_bytes,
            wanted,
            progress,
        })
    }

    fn next_row(&mut self) -> Result<Option<Row>, String> {
        loop {
            if let Some(rows) = &mut self.rows
                && let Some(row) = guarded(|| rows.next().transpose())?
            {
                return Ok(Some(row));
            }
            if self.next_group == self.reader.num_row_groups() {
                return Ok(None);
            }
            let (reader, schema, idx) = (&self.reader, &self.schema, self.next_group);
            self.rows = Some(guarded(|| {
                TreeBuilder::new().as_iter(schema.clone(), &*reader.get_row_group(idx)?)
            })?);
            self.next_group += 1;
        }
    }

    fn tell(&self) {
        let share = u128::from(self.len_bytes) * u128::from(self.row.min(self.n_rows));
        let done = share / u128::from(self.n_rows.max(1));
        self.progress.store(done as u64, Ordering::Relaxed);
    }

    fn body(&self, row: Row) -> Result<Body, String> {
        if self.wanted.is_record() {
            let columns = row.into_columns().into_iter().map(|(name, field)| {
                let value = value_of(field).map_err(|reason| format!("`{name}` {reason}"))?;
                Ok((name, value))
            });
            let record: Map<_, _> = columns.collect::<Result<_, String>>()?;
            return Ok(Body::Text(Value::Object(record).to_string()));
        }
        let mut picked = Picked::default();
        for (name, field) in row.into_columns() {
            if let Some(key_idx) = self.wanted.find(&name) {
                let value = value_of(field).map_err(|reason| format!("`{name}` {reason}"))?;
                self.wanted.offer(&mut picked, key_idx, value);
            }
        }
        let body = self.wanted.body(picked);
        body.map_err(|misfit| misfit.reason::<&str>(&[]))
    }
}

impl Iterator for Table {
    type Item = Result<(u64, Body), Flaw>;

    fn next(&mut self) -> Option<Self::Item> {
        self.row += 1;
        let row = match self.next_row() {
            Ok(row) => row?,
            Err(reason) => return Some(Err(Flaw::whole(self.row, reason))),
        };
        self.tell();
        let body = self.body(row);
        let body = body.map_err(|reason| Flaw::row(self.row, reason));
        Some(body.map(|body| (self.row, body)))
    }
}

/// The file's length, when it does not end before its footer.
fn whole_length(file: &mut File) -> Result<u64, String> {
    let cannot = |error| format!("cannot be read: {error}");
    let len_bytes = file.metadata().map_err(cannot)?.len();
    let mut tail = [0; 4];
    if len_bytes >= 12 {
        file.seek(SeekFrom::End(-4)).map_err(cannot)?;
        file.read_exact(&mut tail).map_err(cannot)?;
    }
    if matches!(&tail, b"PAR1" | b"PARE") {
        Ok(len_bytes)
    } else {
        Err("is no whole parquet file: it is cut off, or something else".to_owned())
    }
}

/// Calls the parquet crate, which panics on some broken files instead of saying so.
fn guarded<T>(call: impl FnOnce() -> Result<T, ParquetError>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(result) => result.map_err(|error| broken(&error)),
        Err(_) => Err("broken parquet".to_owned()),
    }
}

fn broken(error: &ParquetError) -> String {
    format!("broken parquet: {error}")
}

fn value_of(field: Field) -> Result<Value, &'static str> {
    Ok(match field {
        Field::Null => Value::Null,
        Field::Str(text) => Value::String(text),
        // Older writers do not mark strings as such.
        Field::Bytes(bytes) => match std::str::from_utf8(bytes.data()) {
            Ok(text) => Value::String(text.to_owned()),
            Err(_) => return Err("holds bytes, not text"),
        },
        Field::Bool(value) => Value::Bool(value),
        Field::Group(row) => {
            let columns = row.into_columns().into_iter();
            let pairs = columns.map(|(name, field)| Ok::<_, &str>((name, value_of(field)?)));
            Value::Object(pairs.collect::<Result<Map<_, _>, _>>()?)
        }
        Field::ListInternal(list) => {
            let elements = list.elements().iter().cloned();
            Value::Array(elements.map(value_of).collect::<Result<_, _>>()?)
        }
        Field::MapInternal(_) => Value::Object(Map::new()),
        Field::Byte(n) => n.into(),
        Field::Short(n) => n.into(),
        Field::Int(n) => n.into(),
        Field::Long(n) => n.into(),
        Field::UByte(n) => n.into(),
        Field::UShort(n) => n.into(),
        Field::UInt(n) => n.into(),
        Field::ULong(n) => n.into(),
        Field::Float16(x) => f32::from(x).into(),
        Field::Float(x) => x.into(),
        Field::Double(x) => x.into(),
        // Decimals and points in time, in the crate's spelling.
        other => Value::String(other.to_string()),
    })
}
