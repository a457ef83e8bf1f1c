//! Takes the files that the page at `/docs` needs out of the published archive of Swagger UI, and packs them: they
//! become part of the binary, which so needs no other host.

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
    let out = PathBuf::from(std::env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?);
    let mut archive = ZipArchive::new(Cursor::new(SWAGGER_UI_VENDORED))?;
    for file in FILES {
        let suffix = format!("/dist/{file}");
        let is_it = |index: &usize| match archive.name_for_index(*index) {
            Some(Ok(name)) => name.ends_with(&suffix),
            _ => false,
        };
        let index = (0..archive.len()).find(is_it);
        let mut packed = archive.by_index(index.ok_or_else(|| format!("no {file} in the archive"))?)?;
        let mut repacked = GzEncoder::new(File::create(out.join(format!("{file}.gz")))?, Compression::best());
        std::io::copy(&mut packed, &mut repacked)?;
        repacked.finish()?;
    }
    Ok(())
}
