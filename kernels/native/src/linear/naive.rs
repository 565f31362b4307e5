use super::{
    BLOCK, Floats, FloatsMut, Linear, LinearError,
    activations::quantise,
    int16::{self, STRETCH},
    pack::unpack_row,
    weight::Format,
};

/// As [`super::linear`], a number at a time: weights as they unpack, activations rounded as the format asks, sums in double
/// precision.
///
/// # Errors
/// As [`super::linear`].
pub fn linear_naive(call: &Linear<'_>, output: &mut FloatsMut<'_>) -> Result<(), LinearError> {
    let num_rows = call.validate(output)?;
    let (rows, columns) = (call.weight.rows(), call.weight.columns());
    let mut weights = vec![0.0; columns];
    for segment in call.weight.segments() {
        for feature in segment.start..segment.start + segment.rows {
            unpack_row(segment, feature - segment.start, &mut weights);
            for row in 0..num_rows {
                let x = rounded(call.x, row * columns, columns, segment.format);
                let dot: f64 = weights.iter().zip(x).map(|(&w, x)| f64::from(w) * f64::from(x)).sum();
                let bias = call.bias.map_or(0.0, |bias| f64::from(bias.get(feature)));
                output.write(row * rows + feature, &[(dot + bias) as f32]);
            }
        }
    }
    Ok(())
}

/// A row of activations as a weight of `format` sees it.
fn rounded(x: Floats<'_>, begin: usize, columns: usize, format: Format) -> Vec<f32> {
    let mut row: Vec<f32> = (begin..begin + columns).map(|index| x.get(index)).collect();
    match format {
        Format::F32 | Format::Bf16 => {}
        Format::Int16 => {
            for stretch in row.chunks_mut(STRETCH) {
                let mut values = [0.0; STRETCH];
                values[..stretch.len()].copy_from_slice(stretch);
                let unit = int16::unit(&values);
                let rounded = int16::round(&values, unit);
                stretch.iter_mut().zip(rounded).for_each(|(x, integer)| *x = unit * f32::from(integer));
            }
        }
        _ => {
            for block in row.chunks_mut(BLOCK) {
                let mut values = [0.0; BLOCK];
                values[..block.len()].copy_from_slice(block);
                let mut quants = [0; BLOCK];
                let (scale, _) = quantise(&values, &mut quants);
                block.iter_mut().zip(quants).for_each(|(x, quant)| *x = scale * f32::from(quant));
            }
        }
    }
    row
}
