//! How many rows to read at once.

/// How many rows to read at once, so that a batch has about the same number of bytes whatever the size of the payloads.
#[derive(Clone, Copy)]
pub(in crate::source::polling) struct BatchSize {
    row_bytes: usize,
}

impl BatchSize {
    const TARGET_BYTES: usize = 8 * 1024 * 1024;
    /// Before anything was read, the rows might be large.
    const UNKNOWN: usize = 64 * 1024;

    pub(in crate::source::polling) fn new() -> Self {
        Self { row_bytes: Self::UNKNOWN }
    }

    pub(in crate::source::polling) fn rows(&self, limit: usize) -> usize {
        (Self::TARGET_BYTES / self.row_bytes.max(1)).clamp(1, limit.max(1))
    }

    /// Returns how large each of this many rows may be. Together they have at most about twice the bytes of a batch, unless there
    /// is only one.
    pub(in crate::source::polling) fn largest(&self, rows: usize) -> usize {
        (2 * Self::TARGET_BYTES / rows.max(1)).max(self.row_bytes)
    }

    pub(in crate::source::polling) fn learn(&mut self, rows: usize, bytes: usize) {
        self.row_bytes = bytes.checked_div(rows).unwrap_or(self.row_bytes);
    }
}
