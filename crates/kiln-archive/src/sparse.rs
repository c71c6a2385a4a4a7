//! Files with holes: where their pieces lie, in GNU's four ways of writing that down.

use std::io::Read;

use crate::ArchiveError;
use crate::header::{BLOCK, number};
use crate::pax::decimal;

/// A part of a file that is not a hole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

/// Most pieces of one file; GNU tar writes one for each stretch of data.
const PIECES: usize = 1 << 16;

/// The map of GNU's old format: four pieces in the header, 21 in each block that follows it. Also
/// gives the file's real size.
pub(crate) fn old_map(
    header: &[u8; BLOCK],
    from: &mut impl Read,
) -> Result<(Vec<Piece>, u64), ArchiveError> {
    let broken = || ArchiveError::damaged("the map of a sparse file cannot be read");
    let mut pieces = Vec::new();
    take_pieces(&header[386..482], &mut pieces).ok_or_else(broken)?;
    let size = number(&header[483..495]).ok_or_else(broken)?;
    let mut more = header[482] != 0;
    while more {
        let mut block = [0; BLOCK];
        crate::reader::fill(from, &mut block)?;
        take_pieces(&block[..504], &mut pieces).ok_or_else(broken)?;
        more = block[504] != 0;
    }
    Ok((pieces, size))
}

fn take_pieces(field: &[u8], pieces: &mut Vec<Piece>) -> Option<()> {
    for pair in field.as_chunks::<24>().0 {
        if pair[0] == 0 {
            break;
        }
        let piece = Piece { offset: number(&pair[..12])?, length: number(&pair[12..])? };
        pieces.push(piece);
        (pieces.len() <= PIECES).then_some(())?;
    }
    Some(())
}

/// The map of format 1.0: decimal lines at the beginning of the data, filled up to whole blocks.
/// Also gives how many bytes of the data it takes.
pub(crate) fn map_in_data(from: &mut impl Read) -> Result<(Vec<Piece>, u64), ArchiveError> {
    let broken = || ArchiveError::damaged("the map of a sparse file cannot be read");
    let mut numbers: Vec<u64> = Vec::new();
    let mut line = Vec::new();
    let mut taken = 0;
    let mut block = [0; BLOCK];
    loop {
        crate::reader::fill(from, &mut block)?;
        taken += BLOCK as u64;
        for byte in block {
            if byte != b'\n' {
                line.push(byte);
                if line.len() > 20 {
                    return Err(broken());
                }
                continue;
            }
            numbers.push(decimal(&line).ok_or_else(broken)?);
            line.clear();
            let count = usize::try_from(numbers[0]).map_err(|_| broken())?;
            if count > PIECES {
                return Err(broken());
            }
            if numbers.len() == 1 + 2 * count {
                let pairs = numbers[1..].as_chunks::<2>().0.iter();
                let pieces =
                    pairs.map(|[offset, length]| Piece { offset: *offset, length: *length });
                return Ok((pieces.collect(), taken));
            }
        }
    }
}

/// Whether the pieces follow one another inside of `size`, and have `data` bytes together.
pub(crate) fn check(pieces: &[Piece], size: u64, data: u64) -> Result<(), ArchiveError> {
    let mut end = 0_u64;
    let mut sum = 0_u64;
    for piece in pieces {
        let next = piece.offset.checked_add(piece.length);
        match next.filter(|next| piece.offset >= end && *next <= size) {
            Some(next) => end = next,
            None => return Err(ArchiveError::damaged("the map of a sparse file makes no sense")),
        }
        sum += piece.length;
    }
    if sum == data {
        return Ok(());
    }
    Err(ArchiveError::damaged("the map of a sparse file does not fit its data"))
}
