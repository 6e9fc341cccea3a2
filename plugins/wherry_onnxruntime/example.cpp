// Runs the bundle's network with ONNX Runtime's C++ API, and compares the first sample's outputs.
//
//   g++ -std=c++17 -O2 example.cpp -o example -I ORT/include -L ORT/lib -lonnxruntime
//   LD_LIBRARY_PATH=ORT/lib ./example FOLDER_OF_THE_BUNDLE
//
// ORT is a release of ONNX Runtime for your machine, unpacked. It runs on the processor; another
// execution provider is appended to the session's options.

#include <onnxruntime_cxx_api.h>

#include "model.h"

static ONNXTensorElementDataType type_of(const std::string &dtype) {
  if (dtype == "float32") return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
  if (dtype == "float16") return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16;
  if (dtype == "int8") return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8;
  if (dtype == "uint8") return ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8;
  if (dtype == "int32") return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32;
  if (dtype == "int64") return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;
  throw std::runtime_error("a tensor of " + dtype);
}

int main(int argc, char **argv) try {
  const std::string folder = argc > 1 ? argv[1] : "..";
  Ort::Env env(ORT_LOGGING_LEVEL_ERROR, "bundle");
  Ort::SessionOptions options;
  options.SetIntraOpNumThreads(model::threads);
  options.SetGraphOptimizationLevel(GraphOptimizationLevel::ORT_ENABLE_ALL);
  Ort::Session session(env, (folder + "/artifact/model.onnx").c_str(), options);

  const Ort::MemoryInfo memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  std::vector<std::vector<char>> bytes;  // the tensors point into them
  std::vector<Ort::Value> inputs;
  std::vector<const char *> input_names, output_names;
  for (const model::Tensor &input : model::inputs) {
    bytes.push_back(model::sample(folder, input));
    inputs.push_back(Ort::Value::CreateTensor(memory, bytes.back().data(), bytes.back().size(),
                                              input.shape.data(), input.shape.size(),
                                              type_of(input.dtype)));
    input_names.push_back(input.name);
  }
  for (const model::Tensor &output : model::outputs) output_names.push_back(output.name);
  const std::vector<Ort::Value> outputs =
      session.Run(Ort::RunOptions{nullptr}, input_names.data(), inputs.data(), inputs.size(),
                  output_names.data(), output_names.size());
  bool same = true;
  for (std::size_t i = 0; i < outputs.size(); i++) {
    const model::Tensor &output = model::outputs[i];
    const std::size_t count = outputs[i].GetTensorTypeAndShapeInfo().GetElementCount();
    const std::string dtype = output.dtype;
    const std::size_t size = dtype == "int64"                           ? 8
                             : dtype == "float32" || dtype == "int32"   ? 4
                             : dtype == "float16"                       ? 2
                                                                        : 1;
    same = model::check(folder, output, outputs[i].GetTensorData<char>(), count * size) && same;
  }
  return same ? 0 : 1;
} catch (const std::exception &error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 2;
}
