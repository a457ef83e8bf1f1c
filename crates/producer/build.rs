//! Extracts the files of the page at `/docs` from the published archive of Swagger UI and compresses
//! them. The binary embeds them, so that the page loads nothing from other hosts.

use std::error::Error;
use std::fs::File;
use std::io::Cursor;
use std::path::PathBuf;

use flate2::Compression;
use flate2::write::GzEncoder;
use utoipa_swagger_ui_vendored::SWAGGER_UI_VENDORED;
use zip::ZipArchive;

const FILES: [&str; 3] = ["swagger-ui-bundle.js", "swagger-ui.css", "favicon-32x32.png"];

fn main() -> Result<(), Box<dyn Error>> {
    let out_dir = PathBuf::from(std::env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?);
    let mut archive = ZipArchive::new(Cursor::new(SWAGGER_UI_VENDORED))?;
    for file in FILES {
        let suffix = format!("/dist/{file}");
        let matches = |index: &usize| match archive.name_for_index(*index) {
            Some(Ok(name)) => name.ends_with(&suffix),
            _ => false,
        };
        let index = (0..archive.len()).find(matches);
        let mut content = archive.by_index(index.ok_or_else(|| format!("no {file} in the archive"))?)?;
        let compressed = File::create(out_dir.join(format!("{file}.gz")))?;
        let mut compressed = GzEncoder::new(compressed, Compression::best());
        std::io::copy(&mut content, &mut compressed)?;
        compressed.finish()?;
    }
    Ok(())
}
