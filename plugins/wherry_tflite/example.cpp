// Runs the bundle's network with TensorFlow Lite's C API, and compares the first sample's outputs.
//
//   g++ -std=c++17 -O2 example.cpp -o example -I TENSORFLOW -L LIB -ltensorflowlite_c
//   LD_LIBRARY_PATH=LIB ./example FOLDER_OF_THE_BUNDLE
//
// TENSORFLOW is a checkout of TensorFlow (or of LiteRT, which has the same headers); LIB the folder of
// libtensorflowlite_c.so, as its build makes it. XNNPACK is used where that library has it.

#include <tensorflow/lite/c/c_api.h>

#include "model.h"

static void need(bool good, const std::string &what) {
  if (!good) throw std::runtime_error("TensorFlow Lite " + what);
}

int main(int argc, char **argv) try {
  const std::string folder = argc > 1 ? argv[1] : "..";
  TfLiteModel *network =
      TfLiteModelCreateFromFile((folder + "/artifact/model.tflite").c_str());
  need(network != nullptr, "does not load the network");
  TfLiteInterpreterOptions *options = TfLiteInterpreterOptionsCreate();
  TfLiteInterpreterOptionsSetNumThreads(options, model::threads);
  TfLiteInterpreter *interpreter = TfLiteInterpreterCreate(network, options);
  need(interpreter != nullptr && TfLiteInterpreterAllocateTensors(interpreter) == kTfLiteOk,
       "does not prepare the network");

  // The file's tensors are found by their names: their order may be another.
  for (const model::Tensor &input : model::inputs) {
    bool found = false;
    for (int i = 0; i < TfLiteInterpreterGetInputTensorCount(interpreter); i++) {
      TfLiteTensor *tensor = TfLiteInterpreterGetInputTensor(interpreter, i);
      if (std::strcmp(TfLiteTensorName(tensor), input.name) != 0) continue;
      const std::vector<char> bytes = model::sample(folder, input);
      found = TfLiteTensorCopyFromBuffer(tensor, bytes.data(), bytes.size()) == kTfLiteOk;
    }
    need(found, std::string("takes no such input ") + input.name);
  }
  need(TfLiteInterpreterInvoke(interpreter) == kTfLiteOk, "does not run the network");
  bool same = true;
  for (const model::Tensor &output : model::outputs) {
    bool found = false;
    for (int i = 0; i < TfLiteInterpreterGetOutputTensorCount(interpreter); i++) {
      const TfLiteTensor *tensor = TfLiteInterpreterGetOutputTensor(interpreter, i);
      if (std::strcmp(TfLiteTensorName(tensor), output.name) != 0) continue;
      found = true;
      same = model::check(folder, output, TfLiteTensorData(tensor), TfLiteTensorByteSize(tensor)) &&
             same;
    }
    need(found, std::string("gives no output ") + output.name);
  }
  TfLiteInterpreterDelete(interpreter);
  TfLiteInterpreterOptionsDelete(options);
  TfLiteModelDelete(network);
  return same ? 0 : 1;
} catch (const std::exception &error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 2;
}
