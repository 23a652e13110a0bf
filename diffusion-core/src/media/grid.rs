//! Pictures side by side.

use image::{GenericImage, Rgb, RgbImage};

use super::read::MAX_PIXELS;
use crate::error::{Error, Result};

const WHITE: Rgb<u8> = Rgb([255; 3]);

/// Pictures in rows of `columns`, with `gap` white pixels between them. All cells are as large as the largest
/// picture, and smaller ones stand in their middle.
///
/// # Errors
/// [`Error::InvalidArgument`] for no pictures, no columns, or more than 2^27 pixels in all.
pub fn grid(pictures: &[RgbImage], columns: usize, gap: u32) -> Result<RgbImage> {
    if pictures.is_empty() || columns == 0 {
        let found = format!("{} pictures in {columns} columns", pictures.len());
        return Err(Error::argument("grid", "at least one of each", found));
    }
    let columns = columns.min(pictures.len());
    let rows = pictures.len().div_ceil(columns);
    let largest = |side: fn(&RgbImage) -> u32| pictures.iter().map(side).max().unwrap_or(0);
    let (width, height) = (largest(RgbImage::width), largest(RgbImage::height));
    let length = |cells: usize, side: u32| {
        let (cells, side, gap) = (cells as u128, u128::from(side), u128::from(gap));
        cells * side + (cells - 1) * gap
    };
    let (total_width, total_height) = (length(columns, width), length(rows, height));
    if total_width * total_height > u128::from(MAX_PIXELS) {
        let found = format!("{total_width} x {total_height}");
        return Err(Error::argument(
            "grid",
            format!("at most {MAX_PIXELS} pixels"),
            found,
        ));
    }
    let mut sheet = RgbImage::from_pixel(total_width as u32, total_height as u32, WHITE);
    for (picture, i) in pictures.iter().zip(0..) {
        let (column, row) = (i % columns as u32, i / columns as u32);
        let x = column * (width + gap) + (width - picture.width()) / 2;
        let y = row * (height + gap) + (height - picture.height()) / 2;
        sheet.copy_from(picture, x, y).map_err(Error::custom)?;
    }
    Ok(sheet)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_as_large_as_the_largest() -> Result<()> {
        let black = |width, height| RgbImage::new(width, height);
        let sheet = grid(&[black(4, 2), black(2, 2), black(4, 4)], 2, 1)?;
        assert_eq!(sheet.dimensions(), (9, 9));
        let rows: Vec<String> = sheet
            .rows()
            .map(|row| {
                row.map(|pixel| if *pixel == WHITE { '.' } else { '#' })
                    .collect()
            })
            .collect();
        let expected = [
            ".........",
            "####..##.",
            "####..##.",
            ".........",
            ".........",
            "####.....",
            "####.....",
            "####.....",
            "####.....",
        ];
        assert_eq!(rows, expected);
        assert_eq!(grid(&[black(3, 5)], 7, 9)?.dimensions(), (3, 5));
        Ok(())
    }

    #[test]
    fn what_is_no_grid_is_refused() {
        let one = [RgbImage::new(3, 3)];
        for refused in [grid(&[], 2, 0), grid(&one, 0, 0)] {
            assert!(matches!(refused, Err(Error::InvalidArgument { .. })));
        }
        let two = [RgbImage::new(3, 3), RgbImage::new(3, 3)];
        assert!(matches!(
            grid(&two, 2, u32::MAX),
            Err(Error::InvalidArgument { .. })
        ));
        assert!(grid(&[RgbImage::new(0, 0)], 1, 0).is_ok());
    }
}
