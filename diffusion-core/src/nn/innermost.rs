//! Numbers for blocks of a model.

/// The number of the innermost block that a module is in: of the names in `blocks` that are `module`'s, or a
/// part of it up to a dot, the longest. `module` may have several names.
pub(crate) fn innermost(blocks: &[(String, f64)], module: &[&str]) -> Option<f64> {
    let is_below = |block: &str| {
        module.iter().any(|name| {
            name.strip_prefix(block)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        })
    };
    let fitting = blocks.iter().filter(|(block, _)| is_below(block));
    let longest = fitting.max_by_key(|(block, _)| block.len());
    longest.map(|(_, number)| *number)
}
