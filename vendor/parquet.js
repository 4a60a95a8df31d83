export { decompress } from "fzstd";
export { parquetMetadata, parquetReadObjects } from "hyparquet";
